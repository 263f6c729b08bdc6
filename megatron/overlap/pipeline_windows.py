"""Windows of kind `pp_wait`: a stage waits for a peer's tensor."""

from collections.abc import Sequence
from typing import Any

from megatron.overlap.windows import Windows
from overlap_recompute.plan.actions import Action
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.schedules import Phase


class PipelineWindows:
    """Recomputes in the waits that a schedule offers; measures all of them."""

    __slots__ = ("_windows",)

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def finish(self, pending: Any, *, phase: Phase, ahead: Sequence[Action]) -> None:
        """Use the time until `pending.is_completed()`, then call `pending.wait()`.

        Args:
            pending: a posted receive.
            phase: part of the step.
            ahead: passes to recompute for; empty: leave this wait alone. Which comes first the queue knows anyhow.
        """
        if not self._windows.active:
            pending.wait()
        elif ahead:
            self._windows.finish(WindowKind.PP_WAIT, pending, pollable=True)
        else:
            self._windows.measure(WindowKind.PP_WAIT, pending)
