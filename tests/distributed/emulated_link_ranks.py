"""One rank of the test of the emulated link; fails an assertion or ends with 0. Started by test_emulated_link.py."""

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, Work

from megatron.pretrain.config import DistributedOptions
from megatron.pretrain.distributed.emulated_link import EmulatedLink, LinkedProcessGroups, Transfer, emulated_link
from megatron.pretrain.platform import install_platform

install_platform("gloo")

from megatron.core.tensor_parallel import mappings  # noqa: E402 - after the platform

GBPS, LATENCY_US = 0.2, 3000.0
ELEMENTS = 250_000
PAYLOAD_BYTES = 4 * ELEMENTS
"""1 MB: 40 ms on the link, 2 over loopback."""

SLACK_S = 0.1
"""What the machine may add."""

TRIES = 40
"""What takes too long is tried again: the machine may do much else. A wrong time is wrong every time."""


def expected_s(transferred_bytes: float, messages: int = 1) -> float:
    """The alpha-beta time, by hand."""
    return transferred_bytes * 8 / (GBPS * 1e9) + messages * LATENCY_US * 1e-6


def payload(seed: int) -> torch.Tensor:
    """Other values on each rank."""
    generator = torch.Generator().manual_seed(10 * seed + dist.get_rank())
    return torch.randn(ELEMENTS, generator=generator)


Operation = Callable[[bool], tuple[torch.Tensor, Work | None]]
"""Starts the operation, asynchronously or not; its result, and its work."""


def all_reduce(async_op: bool) -> tuple[torch.Tensor, Work | None]:
    data = payload(1)
    return data, dist.all_reduce(data, async_op=async_op)


def all_gather(async_op: bool) -> tuple[torch.Tensor, Work | None]:
    output = torch.empty(2 * ELEMENTS)
    return output, dist.all_gather_into_tensor(output, payload(2), async_op=async_op)


def reduce_scatter(async_op: bool) -> tuple[torch.Tensor, Work | None]:
    output = torch.empty(ELEMENTS // 2)
    return output, dist.reduce_scatter_tensor(output, payload(3), async_op=async_op)


def all_to_all(async_op: bool) -> tuple[torch.Tensor, Work | None]:
    # Each rank keeps a fifth: what it sends to the other, and hears from it, are four fifths.
    splits = [ELEMENTS // 5, ELEMENTS - ELEMENTS // 5]
    mine = splits if dist.get_rank() == 0 else splits[::-1]
    output = torch.empty(ELEMENTS)
    work = dist.all_to_all_single(output, payload(4), mine, mine, async_op=async_op)
    return output, work


def coalesced(async_op: bool) -> tuple[torch.Tensor, Work | None]:
    data = [payload(5), payload(6)]
    with dist.distributed_c10d._coalescing_manager(async_ops=async_op) as manager:
        for tensor in data:
            dist.all_reduce(tensor, async_op=async_op)
    return torch.cat(data) if not async_op else data[1], manager.works[0] if async_op else None


OPERATIONS: dict[str, tuple[Operation, float]] = {
    "all_reduce": (all_reduce, expected_s(PAYLOAD_BYTES, 2)),
    "all_gather": (all_gather, expected_s(PAYLOAD_BYTES)),
    "reduce_scatter": (reduce_scatter, expected_s(PAYLOAD_BYTES / 2)),
    "all_to_all": (all_to_all, expected_s(PAYLOAD_BYTES * 0.8)),
    "coalesced": (coalesced, expected_s(2 * PAYLOAD_BYTES, 2)),
}


def takes(action: Callable[[], float], least_s: float, limit_s: float, name: str) -> None:
    """The action takes less than a limit on both ranks, in one of `TRIES`, and never less than `least_s`."""
    for _ in range(TRIES):
        dist.barrier()
        took_s = action()
        assert least_s <= took_s, (name, took_s, least_s)
        longest_s = torch.tensor(took_s)
        dist.all_reduce(longest_s, dist.ReduceOp.MAX)
        if longest_s.item() < limit_s:
            return
    raise AssertionError(f"{name} took {longest_s.item()} s, again and again; less than {limit_s} s expected")


def poll(work: Work, start_s: float, least_s: float) -> None:
    """Ask until it is completed, which it is not before its time."""
    while not work.is_completed():
        time.sleep(0.001)
        assert time.monotonic() - start_s < 60
    assert time.monotonic() - start_s >= least_s


def at_once(operation: Operation, wanted: torch.Tensor, name: str) -> float:
    """Wait for the operation in the call; how long it took."""
    start_s = time.monotonic()
    result, none = operation(False)
    took_s = time.monotonic() - start_s
    assert none is None
    assert torch.equal(result, wanted), name
    return took_s


def polled(operation: Operation, wanted: torch.Tensor, name: str) -> float:
    """Ask for the end of the operation again and again; how long it took."""
    start_s, busy_s = time.monotonic(), time.process_time()
    result, work = operation(True)
    assert isinstance(work, Work)
    poll(work, start_s, OPERATIONS[name][1])
    took_s, busy_s = time.monotonic() - start_s, time.process_time() - busy_s
    assert busy_s < 0.7 * took_s, f"{name}: the emulation burns processor time"
    assert torch.equal(result, wanted), name
    assert work.wait()
    return took_s


def compare(groups: LinkedProcessGroups) -> None:
    """Every operation: the same bits, not before its time, whether waited for or polled."""
    for name, (operation, least_s) in OPERATIONS.items():
        wanted = {is_async: operation(is_async) for is_async in (False, True)}
        if (plain := wanted[True][1]) is not None:
            plain.wait()
        groups.install()
        takes(partial(at_once, operation, wanted[False][0], name), least_s, least_s + SLACK_S, name)
        takes(partial(polled, operation, wanted[True][0], name), least_s, least_s + SLACK_S, name)
        dist.barrier()
        groups.remove()


def exchange(peer: int) -> float:
    """Both directions at once; how long it took."""
    received = torch.empty(ELEMENTS)
    start_s = time.monotonic()
    receive, send = dist.irecv(received, peer), dist.isend(payload(7), peer)
    assert receive is not None
    assert send is not None
    poll(receive, start_s, expected_s(PAYLOAD_BYTES))
    send.wait()
    took_s = time.monotonic() - start_s
    theirs = torch.Generator().manual_seed(70 + peer)
    assert torch.equal(received, torch.randn(ELEMENTS, generator=theirs))
    return took_s


def batch(peer: int) -> float:
    """Two transfers in each direction, as one batch; how long it took."""
    start_s = time.monotonic()
    tensors = [payload(8), torch.empty(ELEMENTS)] * 2
    operations = [
        dist.P2POp(dist.isend if place % 2 == 0 else dist.irecv, tensor, peer, tag=place // 2)
        for place, tensor in enumerate(tensors)
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return time.monotonic() - start_s


def point_to_point(peer: int) -> None:
    """Both directions at once take the time of one; in one direction transfers queue."""
    once_s, twice_s = expected_s(PAYLOAD_BYTES), expected_s(2 * PAYLOAD_BYTES)
    takes(partial(exchange, peer), once_s, 1.8 * once_s, "both directions at once")
    takes(partial(batch, peer), twice_s, 1.8 * twice_s, "two transfers in each direction")


def late_peer(rank: int) -> None:
    """The time starts when the last rank has come, also for a receive that was posted long before."""
    letter = torch.zeros(ELEMENTS, dtype=torch.float64)
    dist.barrier()
    if rank == 1:
        time.sleep(0.1)
        letter[0] = time.monotonic()  # one clock for all processes of a machine
    work = dist.irecv(letter, 1) if rank == 0 else dist.isend(letter, 0)
    assert work is not None
    work.wait()
    assert time.monotonic() - letter[0].item() >= expected_s(2 * PAYLOAD_BYTES)


def names_bound_at_import(link: EmulatedLink) -> None:
    """Megatron-Core's own functions go over the link, whatever name they know the collective by."""
    world = dist.group.WORLD
    before = link.traffic()
    for function in (
        mappings._reduce, mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim,
    ):  # fmt: skip
        start_s = time.monotonic()
        function(payload(10), world)
        assert time.monotonic() - start_s >= expected_s(PAYLOAD_BYTES / 2), function
    moved_bytes = link.traffic().sent_bytes - before.sent_bytes
    assert moved_bytes == PAYLOAD_BYTES + PAYLOAD_BYTES + PAYLOAD_BYTES // 2


def not_emulated() -> float:
    """How long a sum takes."""
    start_s = time.monotonic()
    dist.all_reduce(payload(11))
    return time.monotonic() - start_s


def errors_surface(rank: int) -> None:
    """A peer that never sends: the wait ends with the real error, in the time of the group."""
    group = dist.new_group(timeout=timedelta(seconds=1))
    if rank == 0:
        work = dist.irecv(torch.empty(1), 1, group=group)
        assert work is not None
        with pytest.raises(RuntimeError, match=r"[Tt]imed out"):
            work.wait()
        assert work.is_completed()
        assert not work.is_success()
    dist.barrier()


def main() -> None:
    """Everything, on two ranks."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    before = dict(vars(ProcessGroup))
    link = EmulatedLink(GBPS, LATENCY_US)
    assert link.duration_s(Transfer(sent_bytes=PAYLOAD_BYTES, received_bytes=None, messages=1)) == expected_s(
        PAYLOAD_BYTES
    )
    compare(LinkedProcessGroups(link))
    alone = [dist.new_group([other]) for other in range(2)][rank]
    with LinkedProcessGroups(link):
        point_to_point(1 - rank)
        late_peer(rank)
        names_bound_at_import(link)
        errors_surface(rank)
        assert type(dist.all_reduce(torch.ones(1), group=alone, async_op=True)) is Work, "a group of one has no link"
    assert all(vars(ProcessGroup)[name] is before[name] for name in before), "not what it was"
    assert vars(ProcessGroup).keys() == before.keys()
    takes(not_emulated, 0.0, expected_s(PAYLOAD_BYTES), "without the emulation")
    with emulated_link(DistributedOptions(emulate_link_gbps=GBPS)) as chosen:
        dist.barrier()
        assert chosen is not None
        assert chosen.traffic().transfers == 1
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
