"""How the ranks of a run find each other: a store on rank 0's host, a roll call, and the address of the hub."""

import contextlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store, TCPStore

from megatron.pretrain.config import World
from megatron.pretrain.distributed.hub import Hub
from megatron.pretrain.distributed.liveness import SETTLE_S, HubAddress, LivenessWatch, join
from overlap_recompute.plan.errors import ClusterError

AGENT_STORE_VARIABLE = "TORCHELASTIC_USE_AGENT_STORE"
RESTART_VARIABLE = "TORCHELASTIC_RESTART_COUNT"
POLL_S = 0.05
VERDICT_MARGIN_S = 15.0
LISTED_RANKS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """What the ranks share once they have met."""

    store: Store
    """For the process group."""

    watch: LivenessWatch
    """The watch over all ranks, already running."""


def meet(world: World, environ: Mapping[str, str], *, timeout_s: float, liveness_timeout_s: float) -> Meeting:
    """Bring all ranks together: connect to the store, call the roll, start the watch.

    Works under torchrun (whose agent hosts the store) and wherever RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are
    known (srun, plain processes): then rank 0 hosts the store.

    Raises:
        ClusterError: a rank did not come within `timeout_s`; all ranks that came raise it, and it names the missing.
    """
    store = _connect(world, environ, timeout_s)
    store = PrefixStore(f"attempt_{environ.get(RESTART_VARIABLE, '0')}", store)
    place = f"host {socket.gethostname()}, process {os.getpid()}"
    try:
        _call_roll(store, world, timeout_s)
        watch = _start_watch(store, world, place, liveness_timeout_s)
    except DistError as error:
        raise ClusterError(
            found=f"rank {world.rank} lost the store on {world.master_addr}:{world.master_port} while the ranks met "
            f"({_first_line(error)})",
            expected="rank 0, or torchrun's agent, to keep it up",
            next_step="look at the output of rank 0 first",
        ) from error
    return Meeting(store=store, watch=watch)


def _connect(world: World, environ: Mapping[str, str], timeout_s: float) -> Store:
    hosts_store = world.rank == 0 and environ.get(AGENT_STORE_VARIABLE) != "True"
    where = f"{world.master_addr}:{world.master_port}"
    try:
        if not hosts_store:
            _await_port(world, timeout_s)
            return _within(timeout_s, lambda: _open_store(world, timeout_s, hosts_store=False))
        return _open_store(world, timeout_s, hosts_store=True)
    except (DistError, OSError, RuntimeError, ValueError) as error:
        if hosts_store:
            raise ClusterError(
                found=f"rank 0 cannot open the rendezvous port on {where} ({_first_line(error)})",
                expected="a free port on this host, at MASTER_ADDR",
                next_step="choose another MASTER_PORT (torchrun: --master-port), or end the program that holds it",
            ) from error
        raise ClusterError(
            found=f"rank {world.rank} on host {socket.gethostname()} found no store at {where} within {timeout_s:g} s "
            f"({_first_line(error)}): rank 0 is missing, or hidden from this host",
            expected="rank 0, or torchrun's agent, to listen there",
            next_step="look at the output of rank 0, and check MASTER_ADDR, MASTER_PORT and the firewall; "
            "--distributed-timeout-minutes sets how long a rank waits",
        ) from error


def _open_store(world: World, timeout_s: float, *, hosts_store: bool) -> Store:
    return TCPStore(
        world.master_addr,
        world.master_port,
        is_master=hosts_store,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
    )


def _within(timeout_s: float, connect: Callable[[], Store]) -> Store:
    """What `connect` returns or raises; it has a thread of its own, since torch's client waits for its first answer
    without a limit, and another program that listens at the port gives none.

    Raises:
        TimeoutError: it did not come to an end in time.
    """
    outcomes: queue.SimpleQueue[Store | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcomes.put(connect())
        except Exception as error:
            outcomes.put(error)

    threading.Thread(target=run, name="store-client", daemon=True).start()
    try:
        outcome = outcomes.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError("a program that listens there does not answer as a store does") from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _await_port(world: World, timeout_s: float) -> None:
    """Wait until somebody listens at the store's address; the store's own client prints native stacks meanwhile.

    On rank 0's host a connection to a port of the range that the system hands out may come from that very port: it then
    is one with itself, and would keep the port from rank 0.
    """
    deadline_s, pause_s = time.monotonic() + timeout_s, POLL_S
    while True:
        try:
            with socket.create_connection((world.master_addr, world.master_port), timeout=timeout_s) as probe:
                if probe.getsockname() == probe.getpeername():
                    raise ConnectionRefusedError("nobody listens but this rank itself")
            return
        except OSError:
            if time.monotonic() + pause_s > deadline_s:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 1.0)


def _call_roll(store: Store, world: World, timeout_s: float) -> None:
    """Return when all ranks are there. Rank 0 decides, so that all ranks hear the same answer."""
    store.set(f"here/{world.rank}", "")
    store.add("arrived", 1)
    if world.rank == 0:
        deadline_s = time.monotonic() + timeout_s
        while store.add("arrived", 0) < world.world_size and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        missing = _missing(store, world)
        store.set("roll", json.dumps(missing))
    else:
        with contextlib.suppress(DistError):  # no answer from rank 0 within the time: count for ourselves
            store.wait(["roll"], timedelta(seconds=timeout_s + VERDICT_MARGIN_S))
        missing = json.loads(store.get("roll")) if store.check(["roll"]) else _missing(store, world)
    if not missing:
        return
    if world.rank == 0:
        time.sleep(1.0)  # the store is ours, and the others still read the answer
    raise ClusterError(
        found=f"{world.world_size - len(missing)} of {world.world_size} ranks after {timeout_s:g} s; "
        f"missing: {_listed(missing)}",
        expected="every rank to start within --distributed-timeout-minutes",
        next_step="look at the output of the missing ranks: they did not start, stopped early, or cannot reach "
        f"{world.master_addr}:{world.master_port}",
    )


def _missing(store: Store, world: World) -> list[int]:
    if store.add("arrived", 0) == world.world_size:
        return []
    return [rank for rank in range(world.world_size) if not store.check([f"here/{rank}"])]


def _listed(ranks: list[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:LISTED_RANKS])
    return f"rank(s) {shown}" + (f" and {len(ranks) - LISTED_RANKS} more" if len(ranks) > LISTED_RANKS else "")


def _start_watch(store: Store, world: World, place: str, liveness_timeout_s: float) -> LivenessWatch:
    hub = None
    if world.rank == 0:
        hub, hosts = _open_hub(world, liveness_timeout_s)
        address = HubAddress(hosts=hosts, port=hub.port, token=hub.token)
        store.set("hub", json.dumps({"address": asdict(address), "place": place}))
    known = json.loads(store.get("hub"))
    address = HubAddress(**known["address"])
    connection = join(
        address, rank=world.rank, timeout_s=liveness_timeout_s, place=place, hub_place=str(known["place"])
    )
    return LivenessWatch(
        rank=world.rank, connection=connection, timeout_s=liveness_timeout_s, hub_place=str(known["place"]), hub=hub
    )


def _open_hub(world: World, liveness_timeout_s: float) -> tuple[Hub, tuple[str, ...]]:
    """Start the hub, and list the addresses of this host under which others may know it, the likeliest first."""
    source = _source_address(world)
    everyone_is_here = _is_loopback(world.master_addr)
    hub = Hub(
        world_size=world.world_size,
        timeout_s=liveness_timeout_s,
        settle_s=SETTLE_S,
        bind_host=source if everyone_is_here else "",
    )
    hub.start()
    if everyone_is_here:
        return hub, (source,)
    here = [source] if not source.startswith("127.") and source != "::1" else []
    return hub, tuple(dict.fromkeys([*here, world.master_addr, socket.gethostname()]))


def _source_address(world: World) -> str:
    """The address from which this host talks to MASTER_ADDR; nothing is sent."""
    family, kind, _protocol, _name, target = socket.getaddrinfo(
        world.master_addr, world.master_port, type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
