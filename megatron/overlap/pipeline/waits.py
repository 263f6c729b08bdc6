"""The waits of a pipeline stage: who may use them, and how long they were."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from overlap_recompute.plan.actions import Action
from overlap_recompute.schedules import Phase


class Pending(Protocol):
    """A receive that has been posted."""

    def is_completed(self) -> bool:
        """Whether the tensor is here; never blocks. On a GPU: whether the device has got that far."""
        ...

    def wait(self) -> object:
        """Wait until it is here; on a GPU the current stream waits, not the host."""
        ...


class PipelineWaits(Protocol):
    """Who recomputes while this rank has nothing else to do (the `pp_wait` windows)."""

    def finish(self, pending: Pending, *, wait: Action, phase: Phase, ahead: Sequence[Action]) -> None:
        """Use the time until `pending.is_completed()`, then call `pending.wait()`.

        Called at every wait for a tensor of a peer in training steps.

        Args:
            pending: the receive that ends the window.
            wait: the action that waits: WAIT_RECV_F or WAIT_RECV_B.
            phase: part of the step.
            ahead: R actions: the passes to recompute for, the next one first. Empty: the schedule wants this wait left
                alone, and `pending.is_completed()` need not tell the truth.
        """
        ...


@dataclass(slots=True, kw_only=True)
class WaitSums:
    """All waits for receives of one phase since the last `take`."""

    waits: int = 0
    """How many."""
    filled: int = 0
    """How many of them were offered for recompute."""
    length_ns: int = 0
    """Time on the host from the moment when nothing but the tensor was missing until the rank went on; recompute in the
    wait included. On a GPU it is the time of the calls."""


class WaitLog:
    """Sums waits by phase."""

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums = _no_waits()

    def finish(
        self, pending: Pending, wait: Action, phase: Phase, ahead: Sequence[Action], waits: PipelineWaits | None
    ) -> None:
        """Wait, let `waits` use the time if there is one, and count."""
        begin_ns = time.perf_counter_ns()
        if waits is None:
            pending.wait()
        else:
            waits.finish(pending, wait=wait, phase=phase, ahead=ahead)
        sums = self._sums[phase]
        sums.waits += 1
        sums.filled += bool(ahead)
        sums.length_ns += time.perf_counter_ns() - begin_ns

    def take(self) -> dict[Phase, WaitSums]:
        """The sums by phase, also of phases without waits, which then start anew."""
        taken, self._sums = self._sums, _no_waits()
        return taken


def _no_waits() -> dict[Phase, WaitSums]:
    return {phase: WaitSums() for phase in Phase}
