"""Figures of a schedule: microbatches in flight, and where its time goes."""

from collections import Counter
from dataclasses import dataclass

from overlap_recompute.plan.actions import Actions, Grid, Kind, ScheduleError
from overlap_recompute.schedules.execution import Costs, Span, execute
from overlap_recompute.schedules.shape import shape_of


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """How many forward passes a rank holds activations of, at most."""

    peak: int
    """Over all its chunks at one time: (chunk, microbatch) pairs between forward and the end of backward."""
    peak_by_chunk: tuple[int, ...]
    """Of each chunk by itself; the peaks need not be at the same time."""


def in_flight_microbatches(actions: Actions) -> InFlight:
    """Peaks of one rank's list. A forward pass whose backward pass is not in the list (evaluation) holds nothing."""
    backward = {(action.chunk, action.microbatch) for action in actions if action.kind is Kind.B}
    chunks = max((action.chunk for action in actions), default=-1) + 1
    now: Counter[int] = Counter()
    peaks = [0] * chunks
    peak = 0
    for action in actions:
        if (action.chunk, action.microbatch) not in backward:
            continue
        now[action.chunk] += (action.kind is Kind.F) - (action.kind is Kind.B)
        peaks[action.chunk] = max(peaks[action.chunk], now[action.chunk])
        peak = max(peak, now.total())
    return InFlight(peak=peak, peak_by_chunk=tuple(peaks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """When each rank computes, in slots."""

    spans: tuple[tuple[Span, ...], ...]
    """For each rank its spans, in order."""

    @property
    def length_slots(self) -> int:
        """Until the last rank is done."""
        return max((spans[-1].end_slot for spans in self.spans if spans), default=0)

    @property
    def bubble_slots(self) -> tuple[int, ...]:
        """For each rank the slots in which it does nothing."""
        length_slots = self.length_slots
        return tuple(length_slots - sum(span.slots for span in spans) for spans in self.spans)

    @property
    def bubble_fraction(self) -> float:
        """Share of all ranks' slots in which nothing is done; (p - 1) / (m + p - 1) for 1F1B without recompute."""
        return sum(self.bubble_slots) / (self.length_slots * len(self.spans))

    @property
    def hidden_recompute_slots(self) -> tuple[int, ...]:
        """For each rank the recompute that lay in waits."""
        return tuple(self._recompute_slots(spans, hidden=True) for spans in self.spans)

    @property
    def exposed_recompute_slots(self) -> tuple[int, ...]:
        """For each rank the recompute that lengthened its work."""
        return tuple(self._recompute_slots(spans, hidden=False) for spans in self.spans)

    @staticmethod
    def _recompute_slots(spans: tuple[Span, ...], *, hidden: bool) -> int:
        return sum(span.slots for span in spans if span.action.kind is Kind.R and span.hidden is hidden)


def timeline(grid: Grid, costs: Costs | None = None) -> Timeline:
    """Run a valid schedule with fixed costs, `Costs()` unless given.

    A picture of the order, not a prediction: it knows no links and no kernels.

    Raises:
        ScheduleError: the lists block (validate() shows where).
    """
    execution = execute(grid, shape_of(grid), costs or Costs())
    if execution.blocked:
        place = execution.blocked[0]
        raise ScheduleError(
            f"lists that block: rank {place.rank} at {grid[place.rank][place.position]} waits for {place.awaits}",
            "lists that run to their end",
            "show them to validate(), which draws the place",
        )
    return Timeline(spans=execution.spans)
