"""The emulated link's arithmetic, what each operation moves, and works that complete in their time."""

import threading
import time
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import ProcessGroup

from megatron.pretrain.config import DistributedOptions, parse_command_line
from megatron.pretrain.distributed.emulated_link import (
    EmulatedLink,
    LinkedProcessGroups,
    Transfer,
    emulated_link,
    emulated_link_text,
)
from megatron.pretrain.distributed.emulated_link import transfers as moved
from megatron.pretrain.distributed.emulated_link.process_group import OPERATIONS
from megatron.pretrain.distributed.emulated_link.works import EmulatedWork, Waiters
from overlap_recompute.plan.errors import ConfigError, UserError
from tests.unit.config.conftest import MINIMAL, environment

MEGABYTE = Transfer(sent_bytes=1_000_000, received_bytes=1_000_000, messages=2)


class Clock:
    """A time that only the test moves."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def link(clock: Clock | None = None) -> EmulatedLink:
    """8 Gbit/s, so that a byte takes a nanosecond; 50 us."""
    return EmulatedLink(8.0, 50.0, clock_s=clock or Clock())


def one_way(count: int, *, out: bool) -> Transfer:
    return Transfer(sent_bytes=count if out else None, received_bytes=None if out else count, messages=1)


def test_a_transfer_takes_its_bytes_and_its_latencies() -> None:
    assert link().duration_s(MEGABYTE) == pytest.approx(1e-3 + 2 * 50e-6)
    assert link().carry(MEGABYTE) == pytest.approx(100 + 1.1e-3)


def test_one_direction_queues_the_other_does_not_and_latencies_overlap() -> None:
    here = link()
    assert here.carry(one_way(1_000_000, out=True)) == pytest.approx(100.00105)
    assert here.carry(one_way(2_000_000, out=True)) == pytest.approx(100.00305)
    assert here.carry(one_way(1_000_000, out=False)) == pytest.approx(100.00105)
    assert here.carry(MEGABYTE) == pytest.approx(100.0041), "both ways: starts when the later direction is free"
    assert here.carry(one_way(0, out=False)) == pytest.approx(100.00405), "an empty message queues too"


def test_an_idle_link_starts_at_once() -> None:
    clock = Clock()
    here = link(clock)
    here.carry(MEGABYTE)
    clock.now_s = 200.0
    assert here.carry(MEGABYTE) == pytest.approx(200.0011)


def test_what_it_reports_is_labelled_and_adds_up() -> None:
    here = link()
    here.carry(MEGABYTE)
    here.carry(one_way(3_000_000, out=True))
    traffic = here.traffic()
    assert (traffic.transfers, traffic.sent_bytes, traffic.received_bytes) == (2, 4_000_000, 1_000_000)
    assert traffic.busy_s == pytest.approx(4e-3)
    assert traffic.describe() == "emulated link: 2 transfers, 4.0 MB out and 1.0 MB in, busy for 0.004 emulated s"
    assert here.describe() == "emulated link of 8 Gbit/s each way and 50 us"


@pytest.mark.parametrize(("gbps", "latency_us"), [(0.0, 0.0), (-1.0, 0.0), (1.0, -1.0), (float("inf"), 0.0)])
def test_an_impossible_link_is_refused(gbps: float, latency_us: float) -> None:
    with pytest.raises(ConfigError, match="--emulate-link-gbps"):
        EmulatedLink(gbps, latency_us)


def kb(count: int) -> torch.Tensor:
    """A tensor of `count` kB."""
    return torch.empty(count * 250)


@pytest.mark.parametrize(
    ("transfer_of", "values", "expected"),
    [
        (moved.all_reduce, {"data": [kb(4)]}, (6000, 6000, 6)),
        (moved.all_reduce, {"data": [kb(4), kb(4)]}, (12000, 12000, 6)),
        (moved.gathered_ring, {"long": kb(4), "short": kb(1)}, (3000, 3000, 3)),
        (moved.gathered_ring, {"long": [[kb(1)] * 4], "short": [kb(1)]}, (3000, 3000, 3)),
        (moved.all_to_all_single, {"output": kb(8), "input": kb(4)}, (3000, 6000, 1)),
        (
            moved.all_to_all_single,
            {"output": kb(4), "input": kb(4), "output_splits": np.ones(4, int), "input_splits": [0, 4, 0, 0]},
            (0, 3000, 1),
        ),
        (moved.all_to_all, {"output": [kb(1)] * 4, "input": [kb(1), kb(5), kb(1), kb(1)]}, (3000, 3000, 1)),
        (moved.tree, {"data": [kb(4)]}, (4000, 4000, 2)),
        (moved.tree, {}, (0, 0, 2)),
        (moved.to_or_from_root, {"long": [[kb(1)] * 4], "short": [kb(1)]}, (3000, 3000, 1)),
        (moved.to_or_from_root, {"long": [], "short": [kb(1)]}, (1000, 1000, 1)),
        (moved.send, {"data": [kb(4)]}, (4000, None, 1)),
        (moved.receive, {"data": [kb(4)]}, (None, 4000, 1)),
    ],
)
def test_what_an_operation_moves_on_rank_1_of_4(
    transfer_of: moved.TransferOf, values: dict[str, Any], expected: tuple[int | None, int | None, int]
) -> None:
    transfer = transfer_of(4, 1, values)
    assert (transfer.sent_bytes, transfer.received_bytes, transfer.messages) == expected


class RealWork:
    """Stands for torch's: complete when the test says so."""

    def __init__(self, error: Exception | None = None) -> None:
        self.arrived, self._error = threading.Event(), error

    def wait(self) -> bool:
        assert self.arrived.wait(10)
        if self._error is not None:
            raise self._error
        return True

    def result(self) -> list[int]:
        return [42]


def test_a_work_is_complete_after_the_real_one_and_at_its_time() -> None:
    here, waiters, real = EmulatedLink(8e-3), Waiters(), RealWork()  # a kilobyte takes a millisecond
    transfer = one_way(1_000_000, out=False)
    work = EmulatedWork(real, transfer, here, waiters)  # type: ignore[arg-type]
    time.sleep(1.01)
    assert not work.is_completed(), "the real one is not complete"
    start_s = time.monotonic()
    real.arrived.set()
    assert not work.is_completed()
    assert not work.is_success()
    with pytest.raises(RuntimeError, match="timed out waiting 0.01 s for a transfer on the emulated link"):
        work.wait(timedelta(seconds=0.01))
    assert work.wait()
    assert time.monotonic() - start_s >= 1.0
    assert work.is_completed()
    assert work.is_success()
    assert work.exception() is None
    assert work.result() == [42]
    with pytest.raises(NotImplementedError, match="has no future; use wait"):
        work.get_future()
    waiters.close()


def test_an_error_of_the_real_work_belongs_to_whoever_waits() -> None:
    waiters, real = Waiters(), RealWork(RuntimeError("Connection closed by peer"))
    work = EmulatedWork(real, MEGABYTE, link(), waiters)  # type: ignore[arg-type]
    real.arrived.set()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Connection closed by peer"):
            work.wait()
    assert work.is_completed()
    assert not work.is_success()
    assert isinstance(work.exception(), RuntimeError)
    waiters.close()


def waiter_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "emulated-link-waiter"}


def test_waiting_threads_are_as_many_as_needed_used_again_and_end() -> None:
    before, waiters = waiter_threads(), Waiters()
    real = [RealWork() for _ in range(5)]
    for _ in range(3):
        works = [EmulatedWork(one, MEGABYTE, link(), waiters) for one in real]  # type: ignore[arg-type]
        for one in reversed(real):  # in any order: none may hold up another
            one.arrived.set()
        for work in works:
            work._is_transferred.wait(10)
        deadline_s = time.monotonic() + 10
        while len(waiters._idle) < 5 and time.monotonic() < deadline_s:
            time.sleep(0.001)
        assert len(waiter_threads() - before) <= 5
    waiters.close()
    for thread in waiter_threads() - before:
        thread.join(10)
        assert not thread.is_alive()


def test_removal_restores_the_very_same_methods() -> None:
    before = dict(vars(ProcessGroup))
    groups = LinkedProcessGroups(link())
    with groups:
        changed = {name for name, method in vars(ProcessGroup).items() if before[name] is not method}
        assert changed == {name for names in OPERATIONS for name in names if name in before}
        with pytest.raises(UserError, match="a second emulated link"):
            LinkedProcessGroups(link()).install()
    groups.remove()
    after = dict(vars(ProcessGroup))
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_what_others_wrapped_since_stays_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    original = vars(ProcessGroup)["allreduce"]
    with LinkedProcessGroups(link()):
        inner = vars(ProcessGroup)["allreduce"]

        def wrapper(*args: Any) -> Any:
            return inner(*args)

        ProcessGroup.allreduce = wrapper  # type: ignore[method-assign, assignment]
    assert vars(ProcessGroup)["allreduce"] is wrapper
    ProcessGroup.allreduce = original  # type: ignore[method-assign]


def test_an_unknown_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    process_group = "megatron.pretrain.distributed.emulated_link.process_group"
    monkeypatch.setattr(f"{process_group}.OPERATIONS", {("teleport",): OPERATIONS[("send",)]})
    with pytest.raises(UserError, match="a torch whose ProcessGroup has no teleport"):
        LinkedProcessGroups(link()).install()


def test_without_the_flag_nothing_happens() -> None:
    before = dict(vars(ProcessGroup))
    with emulated_link(DistributedOptions()) as none:
        assert none is None
        assert dict(vars(ProcessGroup)) == before


def test_a_run_with_the_flag_is_labelled() -> None:
    flags = [*MINIMAL.split(), "--emulate-link-gbps", "0.4", "--emulate-link-latency-us", "50"]
    config = parse_command_line(flags, environment(2))
    labels = [note for note in config.notes if "emulated" in note]
    assert labels == [
        "the link between ranks is emulated, 0.4 Gbit/s each way and 50 us: times are not those of a network"
    ]
    # What profiles and traces carry on to whoever reads their times.
    text = "the link between ranks was emulated, 0.4 Gbit/s each way and 50 us"
    assert emulated_link_text(config.distributed) == text
    assert emulated_link_text(DistributedOptions()) == ""
    plain = parse_command_line(MINIMAL.split(), environment(2))
    assert not [note for note in plain.notes if "emulated" in note]
