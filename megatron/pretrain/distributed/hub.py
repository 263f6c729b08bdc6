"""The hub: one thread on rank 0 that every rank is connected to; it hears who is lost and tells everybody.

A star of idle TCP connections costs a rank one thread and one small message every few seconds, and lets the kernel
report a dead process at once. The hub's own work is about 15 us per beat (docs/faults.md).
"""

import contextlib
import os
import resource
import secrets
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from megatron.pretrain.distributed.judge import Judge
from megatron.pretrain.distributed.verdict import Cause
from megatron.pretrain.distributed.wire import LineBuffer, WireError, encode, notice_lost_hosts

TICK_S = 0.25
LINGER_S = 10.0


class _Member:
    """One accepted connection; it has a rank once it has shown the token."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.buffer = connection, LineBuffer()
        self.rank: int | None = None


class Hub:
    """Listens for all ranks, asks the judge, and broadcasts verdicts. Runs on a daemon thread from `start` on.

    Args:
        world_size: number of ranks that will connect, rank 0 included.
        timeout_s: silence that counts as a loss.
        settle_s: see `Judge`.
        bind_host: address to listen on; "" for all interfaces.
    """

    def __init__(self, *, world_size: int, timeout_s: float, settle_s: float, bind_host: str) -> None:
        _allow_open_files(world_size)
        self.token = secrets.token_hex(16)
        family = socket.AF_INET6 if ":" in bind_host else socket.AF_INET
        dual_stack = bind_host == "" and socket.has_dualstack_ipv6()
        self._listener = socket.create_server(
            (bind_host, 0),
            family=socket.AF_INET6 if dual_stack else family,
            backlog=max(128, world_size),
            dualstack_ipv6=dual_stack,
        )
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._world_size, self._timeout_s = world_size, timeout_s
        self._judge = Judge(world_size=world_size, timeout_s=timeout_s, settle_s=settle_s, now_s=time.monotonic())
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._members: dict[int, _Member] = {}
        self._told: set[str] = set()
        self._close_at_s: float | None = None
        self._thread = threading.Thread(target=self._serve, name="liveness-hub", daemon=True)
        self._handlers: Mapping[str, Callable[[_Member, int, Mapping[str, Any]], None]] = {
            "beat": self._on_beat,
            "place": self._on_place,
            "failed": self._on_failed,
            "accuse": self._on_accuse,
            "quiet": self._on_quiet,
            "finished": lambda _member, rank, _message: self._judge.finished(rank),
            "goodbye": lambda _member, rank, _message: self._judge.left(rank),
        }
        _close_in_forked_children(self)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self, linger_s: float = LINGER_S) -> None:
        """Wait until every rank has gone, at most `linger_s`, then stop listening."""
        self._close_at_s = time.monotonic() + linger_s
        self._thread.join(linger_s + 1)

    def sockets(self) -> list[socket.socket]:
        """Every socket the hub holds."""
        return [self._listener, *(member.connection for member in list(self._members.values()))]

    def _serve(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the interpreter is shutting down
            while not self._may_end():
                events = self._selector.select(TICK_S)
                self._judge.tick(time.monotonic())
                for key, _mask in events:
                    self._accept() if key.data is None else self._read(key.data)
                self._tell()
            for member in list(self._members.values()):
                self._send(member, encode("goodbye"))
                self._drop(member)
            self._listener.close()

    def _may_end(self) -> bool:
        if self._close_at_s is None:
            return False
        ranks = [member for member in self._members.values() if member.rank is not None]
        return not ranks or time.monotonic() > self._close_at_s

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _address = self._listener.accept()
            connection.setblocking(False)
            notice_lost_hosts(connection, self._timeout_s)
            member = _Member(connection)
            self._members[connection.fileno()] = member
            self._selector.register(connection, selectors.EVENT_READ, member)

    def _read(self, member: _Member) -> None:
        try:
            data = member.connection.recv(65536)
            messages = member.buffer.feed(data) if data else None
            for message in messages or ():
                self._handle(member, message)
        except BlockingIOError:
            return
        except (ConnectionResetError, BrokenPipeError):
            messages = None
        except (OSError, WireError, LookupError, TypeError, ValueError) as error:
            self._lose(member, f"its connection broke ({error})")
            return
        if messages is None:
            self._lose(member)

    def _handle(self, member: _Member, message: Mapping[str, Any]) -> None:
        if member.rank is None:
            self._welcome(member, message)
            return
        self._judge.heard(member.rank, time.monotonic())
        self._handlers[message["kind"]](member, member.rank, message)

    def _welcome(self, member: _Member, message: Mapping[str, Any]) -> None:
        if message["kind"] != "hello" or not secrets.compare_digest(str(message["token"]), self.token):
            raise WireError("not a rank of this run")
        rank = int(message["rank"])
        if not 0 <= rank < self._world_size:
            raise WireError(f"no rank {rank} among {self._world_size}")
        member.rank = rank
        self._judge.heard(member.rank, time.monotonic())
        self._judge.placed(member.rank, str(message["place"]))
        self._send(member, encode("welcome"))

    def _on_beat(self, member: _Member, _rank: int, _message: Mapping[str, Any]) -> None:
        self._send(member, encode("beat"))

    def _on_place(self, _member: _Member, rank: int, message: Mapping[str, Any]) -> None:
        self._judge.placed(rank, str(message["place"]))
        if rank == 0:  # whom the others blame when this hub is gone
            self._broadcast(encode("hub_place", place=message["place"]))

    def _on_failed(self, _member: _Member, rank: int, message: Mapping[str, Any]) -> None:
        self._judge.failed(
            rank,
            Cause(message["cause"]),
            str(message["detail"]),
            echo=bool(message["echo"]),
            now_s=time.monotonic(),
        )

    def _on_accuse(self, _member: _Member, _rank: int, message: Mapping[str, Any]) -> None:
        self._judge.failed(0, Cause(message["cause"]), str(message["detail"]), echo=False, now_s=time.monotonic())

    def _on_quiet(self, member: _Member, rank: int, message: Mapping[str, Any]) -> None:
        quiet = bool(message["quiet"])
        self._judge.quiet(rank, quiet, time.monotonic())
        if rank == 0:  # this process, so the hub itself may stand still
            self._broadcast(encode("hub_quiet", quiet=quiet))
        self._send(member, encode("noted"))

    def _tell(self) -> None:
        if self._judge.verdict is not None and "verdict" not in self._told:
            self._told.add("verdict")
            self._broadcast(encode("verdict", **self._judge.verdict.to_message()))
        if self._judge.all_finished and "finished" not in self._told:
            self._told.add("finished")
            self._broadcast(encode("finished"))

    def _broadcast(self, data: bytes) -> None:
        """Send to all, to rank 0 last: it may end its process, and the hub with it, at once."""
        known = [member for member in self._members.values() if member.rank is not None]
        for member in sorted(known, key=lambda member: member.rank == 0):
            self._send(member, data)

    def _send(self, member: _Member, data: bytes) -> None:
        with contextlib.suppress(OSError):  # who is gone is heard by reading
            member.connection.sendall(data)

    def _lose(self, member: _Member, detail: str | None = None) -> None:
        if member.rank is not None:
            self._judge.ended(member.rank, **({"detail": detail} if detail else {}))
        self._drop(member)

    def _drop(self, member: _Member) -> None:
        self._members.pop(member.connection.fileno(), None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(member.connection)
        member.connection.close()


def _allow_open_files(world_size: int) -> None:
    """Raise the soft limit of open files, 1024 on many systems, towards what `world_size` connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * world_size + 1024  # the store's server and the process group hold connections of their own
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def _close_in_forked_children(hub: Hub) -> None:
    """A forked child (a data loader's worker, a checkpoint writer) must not hold connections of a dead parent open."""
    reference = weakref.ref(hub)

    def close() -> None:
        held = reference()
        for connection in held.sockets() if held else ():
            connection.close()

    os.register_at_fork(after_in_child=close)
