"""The watch over all ranks: if one is lost, all others stop, soon, and each says who it was.

NOTE [ Liveness ]
Every rank keeps one TCP connection to the hub on rank 0, served by a daemon thread of its own, so that neither a
blocked collective nor a long checkpoint stops it.
1. A process that ends closes its connection: the kernel tells the hub within milliseconds, and the hub tells all.
2. A rank that raises sends its error text before it prints anything, so it is ahead of the echoes it causes.
3. A beat every `timeout_s / 6` finds what the kernel cannot see: a stopped process, a host that fell off the network.
   The hub answers each beat, so the ranks find the same of rank 0.
4. On a verdict the rank says so at once, since a launcher may end it any moment. Its main thread then has `GRACE_S` to
   come out of its collective with an exception and leave in order (`report` hands over to it); else the watch thread
   does the `last_acts` and ends the process, because a wait in C++ cannot be interrupted.
5. The only false alarm left is code that holds Python's interpreter lock for longer than `timeout_s`; `quiet` announces
   it.
"""

import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron.pretrain.distributed.hub import Hub
from megatron.pretrain.distributed.judge import DIED_DETAIL, OwnGaps, silent_detail
from megatron.pretrain.distributed.last_words import LastActs, leave, say, whereabouts
from megatron.pretrain.distributed.verdict import Cause, ExitCode, PeerFailure, Verdict
from megatron.pretrain.distributed.wire import LineBuffer, WireError, encode, notice_lost_hosts, shorten
from overlap_recompute.plan.errors import ClusterError

SETTLE_S = 2.0
GRACE_S = 1.0
LAST_RESORT_S = 15.0
CONNECT_S = 10.0
BEATS_PER_TIMEOUT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """Where ranks find the hub, and the token that lets them in."""

    hosts: tuple[str, ...]
    port: int
    token: str


class LivenessWatch:
    """This rank's side of the watch; see the NOTE above. Made by `join`.

    Args:
        rank: this rank.
        connection: to the hub, welcomed.
        timeout_s: silence of the hub that counts as the loss of rank 0.
        hub_place: where rank 0 runs.
        hub: on rank 0 the hub, closed with this watch.
        end_process: called on the watch thread when the main thread does not stop by itself.
    """

    def __init__(
        self,
        *,
        rank: int,
        connection: socket.socket,
        timeout_s: float,
        hub_place: str,
        hub: Hub | None = None,
        end_process: Callable[[int], object] = leave,
    ) -> None:
        self.rank = rank
        self._connection, self._timeout_s, self._hub_place, self._hub = connection, timeout_s, hub_place, hub
        self._beat_s = timeout_s / BEATS_PER_TIMEOUT
        self._end_process = end_process
        self.last_acts = LastActs()
        self._main = threading.current_thread()
        self._send_lock, self._tell_lock, self._told = threading.Lock(), threading.Lock(), False
        self._verdict: Verdict | None = None
        self._decided, self._handed_over, self._everyone_finished = (threading.Event() for _ in range(3))
        self._noted, self._closing = threading.Event(), threading.Event()
        self._hub_quiet = False
        self._heard_s = time.monotonic()
        self._handlers: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
            "beat": lambda _message: None,
            "welcome": lambda _message: None,
            "verdict": lambda message: self._decide(Verdict.from_message(dict(message))),
            "finished": lambda _message: self._everyone_finished.set(),
            "hub_quiet": self._on_hub_quiet,
            "hub_place": self._on_hub_place,
            "noted": lambda _message: self._noted.set(),
            "goodbye": lambda _message: self._closing.set(),
        }
        self._connection.settimeout(min(self._beat_s, 1.0))
        self._thread = threading.Thread(target=self._watch, name="liveness", daemon=True)
        _close_in_forked_children(self)
        self._thread.start()

    @property
    def verdict(self) -> Verdict | None:
        """Who ended the run, once known."""
        return self._verdict

    def place(self, place: str) -> None:
        """Tell where this rank runs ("pipeline stage 1, host n1, process 4711"); verdicts quote it."""
        self._send("place", place=place)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Within, this rank may hold the interpreter lock for longer than the timeout. Its death still shows."""
        self._set_quiet(True)
        try:
            yield
        finally:
            self._set_quiet(False)

    def report(self, detail: str, *, cause: Cause = Cause.FAILED, echo: bool = False) -> Verdict | None:
        """Tell the others that this rank ends, and ask who was first. From here the main thread must end by itself.

        Args:
            detail: the error in one line or a few.
            cause: FAILED or INTERRUPTED.
            echo: whether the error may only echo the end of another rank (a collective that failed).

        Returns:
            The verdict, which may name this rank; None if the hub did not answer in time.
        """
        self._handed_over.set()
        self._send("failed", detail=shorten(detail), cause=cause.value, echo=echo)
        self._decided.wait(SETTLE_S + 3.0)
        return self._verdict

    def tell(self, verdict: Verdict, addition: str = "") -> None:
        """Write why this rank stops, once."""
        with self._tell_lock:
            if not self._told:
                say(self.rank, stop_sentence(self.rank, verdict) + addition)
            self._told = True

    def finish(self) -> None:
        """Wait until every rank has finished its work.

        Raises:
            PeerFailure: one was lost instead.
        """
        self._send("finished")
        while not self._everyone_finished.is_set() and not self._closing.is_set():
            if self._decided.is_set():
                self._handed_over.set()
                assert self._verdict is not None
                self.tell(self._verdict)
                raise PeerFailure(self._verdict)
            self._everyone_finished.wait(0.05)

    def close(self) -> None:
        """Leave the watch: this rank's end means nothing from here on. Rank 0 waits a little for the others."""
        self._closing.set()
        self._send("goodbye")
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(2 * min(self._beat_s, 1.0))
        self._connection.close()
        if self._hub is not None:
            self._hub.close()

    def _set_quiet(self, quiet: bool) -> None:
        self._noted.clear()
        self._send("quiet", quiet=quiet)
        self._noted.wait(2.0)  # the others must know before the lock is held

    def _send(self, kind: str, **fields: Any) -> None:
        with self._send_lock, contextlib.suppress(OSError):  # a hub that is gone is found by reading
            self._connection.sendall(encode(kind, **fields))

    def _watch(self) -> None:
        buffer, gaps, beaten_s = LineBuffer(), OwnGaps(self._timeout_s, time.monotonic()), 0.0
        while not self._closing.is_set() and self._verdict is None:
            now_s = time.monotonic()
            if now_s - beaten_s >= self._beat_s:
                beaten_s = now_s
                self._send("beat")
            self._receive(buffer)
            now_s = time.monotonic()
            if gaps.after_gap(now_s):
                self._heard_s = now_s
            if now_s - self._heard_s > self._timeout_s and not self._hub_quiet:
                self._decide_about_hub(Cause.SILENT, silent_detail(now_s - self._heard_s))
        if self._verdict is not None and not self._closing.is_set():
            self._stop(self._verdict)

    def _receive(self, buffer: LineBuffer) -> None:
        try:
            data = self._connection.recv(65536)
            for message in buffer.feed(data) if data else ():
                self._heard_s = time.monotonic()
                self._handlers[message["kind"]](message)
        except TimeoutError as error:
            if error.errno is not None:  # the kernel gave up on the host; without errno only our own poll ended
                self._decide_about_hub(Cause.SILENT, f"its host does not answer ({error})")
            return
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        except (OSError, WireError, LookupError, ValueError) as error:
            self._decide_about_hub(Cause.DIED, f"its connection broke ({error})")
            return
        if not data:
            self._decide_about_hub(Cause.DIED, DIED_DETAIL)

    def _on_hub_quiet(self, message: Mapping[str, Any]) -> None:
        self._hub_quiet = bool(message["quiet"])

    def _on_hub_place(self, message: Mapping[str, Any]) -> None:
        self._hub_place = str(message["place"])

    def _decide_about_hub(self, cause: Cause, detail: str) -> None:
        if not self._closing.is_set():
            self._send("accuse", cause=cause.value, detail=detail)  # read by a stopped rank 0 when it goes on
            self._decide(Verdict(rank=0, place=self._hub_place, cause=cause, detail=detail))

    def _decide(self, verdict: Verdict) -> None:
        if self._verdict is None:
            self._verdict = verdict
            self._decided.set()

    def _stop(self, verdict: Verdict) -> None:
        try:
            own_words = verdict.rank == self.rank and self._handed_over.is_set()
            place = f" (this rank was at {whereabouts(self._main)})"
            if not own_words:
                self.tell(verdict, place)
            if self._handed_over.wait(GRACE_S):
                time.sleep(LAST_RESORT_S)
            else:
                self.last_acts.run(stop_sentence(self.rank, verdict) + place)
        finally:
            self._end_process(exit_code_of(verdict))


def stop_sentence(rank: int, verdict: Verdict) -> str:
    """Why a rank stops that was not the cause, or that was declared lost while it lives."""
    if verdict.rank == rank:
        return f"stopped because the other ranks lost this one: {verdict.sentence()}"
    return f"stopped because {verdict.sentence()}"


def exit_code_of(verdict: Verdict) -> ExitCode:
    """Exit status of a rank that stops because of this verdict."""
    return ExitCode.INTERRUPTED if verdict.cause is Cause.INTERRUPTED else ExitCode.PEER_LOST


def join(address: HubAddress, *, rank: int, timeout_s: float, place: str, hub_place: str) -> socket.socket:
    """Connect this rank to the hub.

    Raises:
        ClusterError: no address of the hub answers.
    """
    problems = []
    for host in address.hosts:
        try:
            connection = socket.create_connection((host, address.port), timeout=CONNECT_S)
            notice_lost_hosts(connection, timeout_s)
            connection.sendall(encode("hello", rank=rank, token=address.token, place=place))
            if _is_welcomed(connection):
                return connection
            connection.close()
            problems.append(f"{host}: another program answered")
        except OSError as error:
            problems.append(f"{host}: {error}")
    raise ClusterError(
        found=f"rank {rank} ({place}) cannot reach the liveness port {address.port} of rank 0 ({hub_place}): "
        + "; ".join(problems),
        expected="an open TCP port between the hosts of the run",
        next_step="open the firewall between them, or give rank 0's host a MASTER_ADDR that all can reach",
    )


def _is_welcomed(connection: socket.socket) -> bool:
    """Whether the hub's welcome comes next; not one byte more is read, as a verdict may follow."""
    welcome, answer = encode("welcome"), b""
    while len(answer) < len(welcome) and welcome.startswith(answer):
        data = connection.recv(len(welcome) - len(answer))
        if not data:
            return False
        answer += data
    return answer == welcome


def _close_in_forked_children(watch: LivenessWatch) -> None:
    """A forked child must not hold the connection of a dead parent open."""
    reference = weakref.ref(watch)

    def close() -> None:
        held = reference()
        if held is not None:
            held._connection.close()

    os.register_at_fork(after_in_child=close)
