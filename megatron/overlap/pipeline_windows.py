"""Windows of kind `pp_wait`: a stage waits for a peer's tensor."""

from collections.abc import Sequence
from typing import Any

from megatron.overlap.window_log import WindowSums
from megatron.overlap.windows import Windows
from overlap_recompute.plan.actions import Action, Kind
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.schedules import Phase


class PipelineWindows:
    """Recomputes in the waits that a schedule offers; measures all of them."""

    __slots__ = ("_windows", "_before_backward")

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._before_backward = WindowSums()

    def finish(self, pending: Any, *, wait: Action, phase: Phase, ahead: Sequence[Action]) -> None:
        """Use the time until `pending.is_completed()`, then call `pending.wait()`.

        Args:
            pending: a posted receive.
            wait: the action that waits for it.
            phase: part of the step.
            ahead: passes to recompute for; empty: leave this wait alone. Which comes first the queue knows anyhow.
        """
        if not self._windows.active:
            pending.wait()
            return
        if ahead:
            window = self._windows.finish(WindowKind.PP_WAIT, pending, pollable=True)
        else:
            window = self._windows.measure(WindowKind.PP_WAIT, pending)
        if wait.kind is Kind.WAIT_RECV_B:
            self._before_backward.add(window)

    def take_before_backward(self) -> WindowSums:
        """The waits for gradients, directly before a backward pass, since the last call."""
        taken, self._before_backward = self._before_backward, WindowSums()
        return taken
