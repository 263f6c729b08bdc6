"""Windows: a communication is in flight, and until it is over the rank recomputes what backward needs next.

comp: | .. | launch all_reduce  R(L7.linear_fc1) R(L7.activation)  wait | L8 ..
comm: |    |        all_reduce ....................................     |
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from megatron.overlap.closing import Closing, Watch
from megatron.overlap.window_lengths import Place, WindowLengths
from megatron.overlap.window_log import Window, WindowLog
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime import Fill, RecomputeQueue, Runtime

UnitKey = tuple[int, str]


class Windows:
    """Opens windows while `active`; outside of training steps a communication runs as upstream wrote it.

    Args:
        runtime: whose queue is filled from.
        closing: tells when a communication is over.
        log: where windows are recorded.
        fills: kinds of windows in which to recompute; the others are measured.
        lengths: remembers how long windows stay open; None where the host cannot see it.
    """

    __slots__ = ("active", "log", "_runtime", "_queue", "_closing", "_fills", "_lengths")

    def __init__(
        self,
        runtime: Runtime,
        closing: Closing,
        log: WindowLog,
        *,
        fills: Collection[WindowKind],
        lengths: WindowLengths | None = None,
    ) -> None:
        self.active = False
        self.log = log
        self._runtime, self._closing, self._fills, self._lengths = runtime, closing, fills, lengths
        self._queue: RecomputeQueue = runtime.queue

    @property
    def replaying(self) -> bool:
        """Whether a unit is being recomputed, which must not communicate."""
        return self._runtime.replaying

    def begin_step(self) -> None:
        """Open windows from now on, until `active` is taken back."""
        self.active = True
        if self._lengths is not None:
            self._lengths.begin_step()

    def finish(self, kind: WindowKind, work: Any, *, pollable: bool, only: Collection[UnitKey] | None = None) -> Window:
        """Recompute while `work` is in flight, then wait for it; returns what came of it.

        Args:
            kind: what the window is called in figures and traces.
            work: a `torch.distributed` Work, or anything with `wait` (and `is_completed` if `pollable`).
            pollable: whether `work.is_completed()` tells the truth before `work.wait()`.
            only: the (layer, unit) pairs to recompute, with what they depend on; None for what comes next.

        Raises:
            ReplayError: a replay failed; the communication is still in flight.
        """
        if kind not in self._fills:
            return self.measure(kind, work)
        place = self._lengths.next_place(kind) if self._lengths is not None else None
        if self._queue.upcoming(only) is None:
            window = self.measure(kind, work)
        else:
            window = self._fill(kind, work, pollable, only, place)
        if self._lengths is not None and place is not None:
            # A unit that ran over the end hides when it was; half of it is the best guess.
            self._lengths.learn(place, window.end_ns - window.begin_ns - window.overrun_ns // 2)
        return window

    def _fill(
        self, kind: WindowKind, work: Any, pollable: bool, only: Collection[UnitKey] | None, place: Place | None
    ) -> Window:
        expected_ns = self._lengths.expected_ns(place) if self._lengths is not None and place is not None else None
        self.log.begin(kind)
        begin_ns = time.perf_counter_ns()
        left_ns = None if expected_ns is None else lambda: begin_ns + expected_ns - time.perf_counter_ns()
        watch = self._closing.watch(work, pollable)
        fill = _TimedFill(watch)
        done = self._queue.fill(fill.is_over, only=only, left_ns=left_ns)
        filled_ns = time.perf_counter_ns() - begin_ns if done.units else 0
        watch.wait()
        overrun_ns = fill.overrun_ns if done.units else 0
        window = Window(kind, begin_ns, time.perf_counter_ns(), filled_ns, overrun_ns, done.units)
        self.log.add(window)
        return window

    def measure(self, kind: WindowKind, work: Any) -> Window:
        """Wait for `work` and record how long that took."""
        self.log.begin(kind)
        begin_ns = time.perf_counter_ns()
        work.wait()
        window = Window(kind, begin_ns, time.perf_counter_ns(), 0, 0, 0)
        self.log.add(window)
        return window

    @contextmanager
    def window(self, kind: WindowKind) -> "Iterator[OpenWindow]":
        """A window that its user opens and closes: fill it with `fill(until)`, and wait before the block ends."""
        self.log.begin(kind)
        begin_ns = time.perf_counter_ns()
        opened = OpenWindow(self._queue if kind in self._fills else None)
        yield opened
        self.log.add(Window(kind, begin_ns, time.perf_counter_ns(), opened.filled_ns, opened.overrun_ns, opened.units))

    def close(self) -> None:
        """No window will be opened any more."""
        self.active = False
        self._closing.close()


class OpenWindow:
    """See `Windows.window`."""

    __slots__ = ("filled_ns", "overrun_ns", "units", "_queue")

    def __init__(self, queue: RecomputeQueue | None) -> None:
        self.filled_ns = self.overrun_ns = self.units = 0
        self._queue = queue

    def fill(
        self,
        until: Callable[[], bool],
        *,
        budget_bytes: int | None = None,
        only: Collection[UnitKey] | None = None,
    ) -> Fill | None:
        """Recompute until the predicate holds or nothing is left; None where recompute is serialized."""
        if self._queue is None:
            return None
        timed, begin_ns = _TimedFill(until), time.perf_counter_ns()
        done = self._queue.fill(timed.is_over, budget_bytes, only)
        if done.units:
            self.filled_ns += time.perf_counter_ns() - begin_ns
            self.overrun_ns += timed.overrun_ns
            self.units += done.units
        return done


class _TimedFill:
    """Asks whether the window is over, and remembers when it was last known to be open."""

    __slots__ = ("overrun_ns", "_ask", "_open_ns")

    def __init__(self, ask: Watch | Callable[[], bool]) -> None:
        self._ask = ask if callable(ask) else ask.is_over
        self.overrun_ns = 0
        self._open_ns = time.perf_counter_ns()

    def is_over(self) -> bool:
        """Whether it is over."""
        over = self._ask()
        now_ns = time.perf_counter_ns()
        if over:
            self.overrun_ns = now_ns - self._open_ns
        self._open_ns = now_ns
        return over


def in_backward() -> bool:
    """Whether autograd runs a backward pass on this thread."""
    running: bool = torch._C._current_graph_task_id() != -1
    return running
