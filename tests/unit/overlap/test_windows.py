"""Windows: filled until the communication is over, measured, and opened for nobody else's traffic."""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import layers, mappings

from megatron.overlap.adapters.collectives import WindowedCollectives, WindowedWork
from megatron.overlap.closing import Closing, DeviceClosing, HostClosing
from megatron.overlap.pipeline_windows import PipelineWindows
from megatron.overlap.session import OverlapSession
from megatron.overlap.window_log import Window, WindowLog
from megatron.overlap.windows import Windows, in_backward
from overlap_recompute.plan.actions import parse_action
from overlap_recompute.plan.errors import UserError
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime import Journal, Kind
from overlap_recompute.schedules import Phase
from tests.unit.model.support import batch
from tests.unit.overlap.support import forward_backward, model_of, session_of, settings_of

TP = (WindowKind.TP_FORWARD, WindowKind.TP_BACKWARD)


class FakeWork:
    """A communication that is over after it has been asked a number of times, or when `over` says so."""

    def __init__(self, polls: int = 0, error: Exception | None = None) -> None:
        self.left, self.error, self.waited = polls, error, 0

    def is_completed(self) -> bool:
        self.left -= 1
        return self.left < 0

    def wait(self) -> None:
        self.waited += 1
        if self.error is not None:
            raise self.error


Kinds = Collection[WindowKind]
EVERY = frozenset(WindowKind)


class Opened:
    """A model after a forward pass, and windows on its session."""

    def __init__(self, session: OverlapSession, closing: Closing, fills: Kinds = EVERY) -> None:
        self.log: list[Window] = []
        self.windows = Windows(session.runtime, closing, WindowLog(self.log.append), fills=fills)
        self.windows.active = True
        self.session = session


Open = Callable[..., Opened]


@pytest.fixture
def after_forward(rank: None) -> Iterator[Open]:
    """Makes windows on a session whose model has run forward; its twelve units wait for backward."""
    chunks = model_of()
    with session_of(chunks) as session:
        step = session.forward_step(lambda iterator, model: (model(**batch()), None))
        kept = []

        def make(closing: Closing | None = None, *, fills: Kinds = EVERY) -> Opened:
            kept.append(step(None, chunks[0])[0])
            return Opened(session, closing or HostClosing(), fills)

        yield make
        kept.clear()
        session.runtime.abort()


def test_a_window_is_filled_until_the_communication_is_over(after_forward: Open) -> None:
    opened, work = after_forward(), FakeWork(polls=3)
    opened.windows.finish(WindowKind.TP_BACKWARD, work, pollable=True)
    (window,) = opened.log
    assert (window.kind, window.units, work.waited) == (WindowKind.TP_BACKWARD, 3, 1)
    assert 0 < window.overrun_ns <= window.filled_ns <= window.end_ns - window.begin_ns
    sums = opened.windows.log.take()[WindowKind.TP_BACKWARD]
    assert (sums.windows, sums.units, sums.filled_ns) == (1, 3, window.filled_ns)
    assert opened.windows.log.take()[WindowKind.TP_BACKWARD].windows == 0


def test_a_window_without_anything_left_waits(after_forward: Open) -> None:
    opened, work = after_forward(), FakeWork(polls=100)
    opened.windows.finish(WindowKind.EP, work, pollable=True)
    assert opened.log[0].units == 12
    assert opened.log[0].overrun_ns == 0, "it was still open"
    opened.windows.finish(WindowKind.EP, work, pollable=True)
    assert (opened.log[1].units, opened.log[1].filled_ns, work.waited) == (0, 0, 2)


def test_kinds_that_are_left_out_are_measured_and_not_filled(after_forward: Open) -> None:
    opened = after_forward(fills=(WindowKind.PP_WAIT,))
    for kind in (WindowKind.TP_BACKWARD, WindowKind.PP_WAIT):
        opened.windows.finish(kind, FakeWork(polls=2), pollable=True)
    assert [(window.kind, window.units) for window in opened.log] == [
        (WindowKind.TP_BACKWARD, 0),
        (WindowKind.PP_WAIT, 2),
    ]


def test_serialized_windows_are_measured_and_not_filled(after_forward: Open) -> None:
    opened, work = after_forward(fills=()), FakeWork(polls=100)
    opened.windows.finish(WindowKind.TP_FORWARD, work, pollable=True)
    with opened.windows.window(WindowKind.PP_WAIT) as window:
        assert window.fill(lambda: False) is None
    assert [(w.kind, w.units) for w in opened.log] == [(WindowKind.TP_FORWARD, 0), (WindowKind.PP_WAIT, 0)]


def test_who_cannot_be_asked_is_waited_for_by_a_thread(after_forward: Open) -> None:
    opened, waiters = after_forward(), []

    class Blocking(FakeWork):
        def wait(self) -> None:
            waiters.append(threading.current_thread())
            time.sleep(1.0)

    opened.windows.finish(WindowKind.TP_BACKWARD, Blocking(), pollable=False)
    assert waiters[0] is not threading.main_thread()
    assert opened.log[0].units == 12, "a second is enough for all, many times over"
    assert opened.log[0].end_ns - opened.log[0].begin_ns > 0.9e9
    opened.windows.close()


def test_an_error_of_the_thread_is_raised_where_the_rank_waits(after_forward: Open) -> None:
    opened = after_forward()
    work = FakeWork(error=RuntimeError("connection closed by peer"))
    with pytest.raises(RuntimeError, match="connection closed by peer"):
        opened.windows.finish(WindowKind.TP_BACKWARD, work, pollable=False)
    opened.windows.close()


def test_on_a_device_a_window_takes_its_number_of_units(after_forward: Open) -> None:
    opened, work = after_forward(DeviceClosing(5)), FakeWork()
    for _ in range(3):
        opened.windows.finish(WindowKind.TP_BACKWARD, work, pollable=True)
    assert [window.units for window in opened.log] == [5, 5, 2]
    assert work.waited == 3


def test_waits_of_a_pipeline_stage(after_forward: Open) -> None:
    opened = after_forward()
    waits, pending = PipelineWindows(opened.windows), FakeWork(polls=2)
    wait = parse_action("0WAIT_RECV_B0")
    waits.finish(pending, wait=parse_action("0WAIT_RECV_F1"), phase=Phase.STEADY, ahead=())
    waits.finish(pending, wait=wait, phase=Phase.STEADY, ahead=("0R0",))  # type: ignore[arg-type]
    opened.windows.active = False
    waits.finish(pending, wait=wait, phase=Phase.STEADY, ahead=("0R0",))  # type: ignore[arg-type]
    assert [(window.kind, window.units) for window in opened.log] == [(WindowKind.PP_WAIT, 0), (WindowKind.PP_WAIT, 2)]
    assert pending.waited == 3
    before_backward = waits.take_before_backward()
    assert (before_backward.windows, before_backward.units) == (1, 2)
    assert waits.take_before_backward().windows == 0


def test_the_cap_bounds_what_is_brought_back(rank: None) -> None:
    chunks = model_of()
    with session_of(chunks, settings_of("all", prefetch_cap_bytes=20_000)) as session:
        step = session.forward_step(lambda iterator, model: (model(**batch()), None))
        output, _ = step(None, chunks[0])
        opened = Opened(session, HostClosing())
        opened.windows.finish(WindowKind.TP_BACKWARD, FakeWork(polls=100), pollable=True)
        assert 0 < session.runtime.ledger.prefetched_bytes <= 20_000
        assert 0 < opened.log[0].units < 12
        del output
        session.runtime.abort()


def test_without_a_cap_the_first_step_shows_how_far_ahead_to_go(rank: None) -> None:
    chunks = model_of()
    with session_of(chunks, settings_of("all", prefetch_cap_bytes=None)) as session:
        assert session.runtime.queue.cap_bytes == 0
        forward_backward(session, chunks[0])
        assert session.runtime.queue.cap_bytes == 2 * 58368, "of two layers; see test_kept_bytes.py"


class Calls:
    """Stands for `torch.distributed.all_reduce`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "all_reduce") -> None:
        self.seen: list[dict[str, Any]] = []
        self.work = FakeWork()
        monkeypatch.setattr(torch.distributed, name, self)

    def __call__(self, *args: Any, **options: Any) -> FakeWork | None:
        self.seen.append(options)
        return self.work if options["async_op"] else None


def test_a_synchronous_collective_of_a_known_group_becomes_a_window(
    after_forward: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, group, calls = after_forward(), torch.distributed.group.WORLD, Calls(monkeypatch)
    all_reduce = WindowedCollectives(opened.windows, {group: TP}).collective("all_reduce")
    calls.work.left = 2
    assert all_reduce(torch.ones(2), group=group) is None
    assert calls.seen == [{"group": group, "async_op": True}]
    assert [(window.kind, window.units) for window in opened.log] == [(WindowKind.TP_FORWARD, 2)]


def test_an_asynchronous_collective_opens_its_window_at_the_wait(
    after_forward: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, group, calls = after_forward(), torch.distributed.group.WORLD, Calls(monkeypatch)
    all_reduce = WindowedCollectives(opened.windows, {group: TP}).collective("all_reduce")
    handle = all_reduce(torch.ones(2), group=group, async_op=True)
    assert isinstance(handle, WindowedWork) and not opened.log
    calls.work.left = 4
    handle.wait()
    assert [window.units for window in opened.log] == [4]


def test_other_groups_and_other_times_are_left_alone(after_forward: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, group, calls = after_forward(), torch.distributed.group.WORLD, Calls(monkeypatch)
    elsewhere = WindowedCollectives(opened.windows, {}).collective("all_reduce")
    elsewhere(torch.ones(2), group=group)
    elsewhere(torch.ones(2))
    opened.windows.active = False
    assert WindowedCollectives(opened.windows, {group: TP}).collective("all_reduce")(
        torch.ones(2), group=group, async_op=True
    ) is calls.work  # fmt: skip
    assert [seen["async_op"] for seen in calls.seen] == [False, False, True]
    assert not opened.log


def test_a_collective_in_a_replay_is_refused(after_forward: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = after_forward()
    collectives = WindowedCollectives(opened.windows, {})
    monkeypatch.setattr(type(opened.windows), "replaying", True)
    with pytest.raises(UserError, match="a replay that calls reduce_scatter_tensor"):
        collectives.collective("reduce_scatter_tensor")(torch.ones(1))


def test_the_pass_gives_the_window_its_name() -> None:
    seen = []

    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            seen.append(in_backward())
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            seen.append(in_backward())
            return gradient

    Asks.apply(torch.ones(1, requires_grad=True)).backward()
    assert seen == [False, True]


def test_only_two_modules_see_another_torch(rank: None) -> None:
    chunks = model_of()
    before = mappings.torch, layers.torch, mappings.dist_all_gather_func
    with session_of(chunks) as session:
        assert mappings.torch.distributed is not torch.distributed
        assert mappings.torch.distributed.get_rank is torch.distributed.get_rank
        assert mappings.torch.empty is before[0].empty
        assert mappings.dist_all_gather_func is not layers.dist_all_gather_func
        assert not session.windows.active
    assert (mappings.torch, layers.torch, mappings.dist_all_gather_func) == before


def test_a_step_replays_in_the_order_of_use(rank: None) -> None:
    chunks, journal = model_of(), Journal()
    with session_of(chunks, journal=journal) as session:
        forward_backward(session, chunks[0])
    replays = [(event.layer, event.unit) for event in journal.of(Kind.REPLAY_BEGIN)]
    assert [layer for layer, _ in replays] == [1] * 6 + [0] * 6
