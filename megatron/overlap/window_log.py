"""What the windows of an iteration were good for: sums by kind, and every window for whoever listens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from megatron.overlap.step_marks import StepMarks
from overlap_recompute.plan.windows import WindowKind


class Window(NamedTuple):
    """One wait for a communication; times are `time.perf_counter_ns()` on the host."""

    kind: WindowKind
    begin_ns: int
    """The rank had nothing left to do but wait."""
    end_ns: int
    """It goes on: the communication is over, and so is the last recompute begun inside."""
    filled_ns: int
    """Spent on recompute."""
    overrun_ns: int
    """At most so much of the recompute ran after the communication was over; 0 when the wait outlasted it."""
    units: int
    """Units recomputed."""


@dataclass(slots=True, kw_only=True)
class WindowSums:
    """All windows of one kind since the last `take`."""

    windows: int = 0
    units: int = 0
    length_ns: int = 0
    filled_ns: int = 0
    overrun_ns: int = 0

    def add(self, window: Window) -> None:
        """Count one more."""
        self.windows += 1
        self.units += window.units
        self.length_ns += window.end_ns - window.begin_ns
        self.filled_ns += window.filled_ns
        self.overrun_ns += window.overrun_ns

    def join(self, other: "WindowSums") -> None:
        """Add other sums of the kind."""
        self.windows += other.windows
        self.units += other.units
        self.length_ns += other.length_ns
        self.filled_ns += other.filled_ns
        self.overrun_ns += other.overrun_ns


class WindowLog:
    """Sums windows by kind; hands each to `listener`, and marks it in `marks`, where there are such."""

    __slots__ = ("listener", "_marks", "_sums")

    def __init__(self, listener: Callable[[Window], None] | None = None, marks: StepMarks | None = None) -> None:
        self.listener, self._marks = listener, marks
        self._sums = {kind: WindowSums() for kind in WindowKind}

    def begin(self, kind: WindowKind) -> None:
        """A window opens; `add` it when it has closed."""
        if self._marks is not None:
            self._marks.begin_wait(kind)

    def add(self, window: Window) -> None:
        """Count a window that has closed."""
        if self._marks is not None:
            self._marks.end_wait(window.kind, window.units, window.filled_ns)
        self._sums[window.kind].add(window)
        if self.listener is not None:
            self.listener(window)

    def take(self) -> dict[WindowKind, WindowSums]:
        """The sums by kind, also of kinds without windows, which then start anew."""
        taken, self._sums = self._sums, {kind: WindowSums() for kind in WindowKind}
        return taken
