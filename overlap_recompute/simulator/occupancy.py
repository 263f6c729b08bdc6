"""Memory of a stage over simulated time, from the terms of the memory model.

NOTE [ memory over time ]
1. What a chunk keeps for a microbatch counts from the begin of the forward pass to the end of the backward pass.
2. While a backward pass runs, the working set of the stage counts on top, and on the last stage what the head needs
   beyond it.
3. What is recomputed ahead counts as much as there is. Only `peak_bytes` counts the whole cap in its place, as a plan
   must: so it is the total of the memory model, if the schedule brings all microbatches in flight together.
"""

from dataclasses import dataclass

from overlap_recompute.plan.actions import Kind
from overlap_recompute.simulator.stage_model import to_us
from overlap_recompute.simulator.stage_run import Done
from overlap_recompute.simulator.timeline import MemoryPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBytes:
    """Terms of the memory model for one stage."""

    fixed_bytes: int
    """Parameters, gradients, optimizer, communication, base and margin."""
    kept_bytes: tuple[int, ...]
    """By chunk, for one microbatch."""
    working_bytes: int
    """While a backward pass runs, what the head needs beyond it included."""
    cap_bytes: int
    """Most that is recomputed ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """Memory of one stage."""

    points: tuple[MemoryPoint, ...]
    peak_bytes: int
    """With the cap in full."""
    held_peak_bytes: int
    """With what was really there."""


def occupancy_of(terms: StageBytes, rows: list[Done], *, draws: bool) -> Occupancy:
    """Follow a stage through what it did.

    Args:
        terms: of the stage.
        rows: in order.
        draws: whether points are wanted.
    """
    level = peak = held_peak = terms.fixed_bytes
    ahead_bytes = 0
    points = [MemoryPoint(0.0, level)]
    for done in rows:
        outcome, action = done.outcome, done.action
        if outcome is None:
            continue
        is_backward = action.kind is Kind.B
        level += terms.kept_bytes[action.chunk] if action.kind is Kind.F else 0
        busy = level + (terms.working_bytes if is_backward else 0)
        peak = max(peak, busy + terms.cap_bytes)
        held_peak = max(held_peak, busy + outcome.ahead_peak_bytes)
        level -= terms.kept_bytes[action.chunk] if is_backward else 0
        ahead_bytes = outcome.ahead_bytes
        if draws:
            _add(points, to_us(done.begin_fs), busy + outcome.ahead_peak_bytes)
            _add(points, to_us(done.end_fs), level + ahead_bytes)
    return Occupancy(points=tuple(points), peak_bytes=peak, held_peak_bytes=held_peak)


def _add(points: list[MemoryPoint], time_us: float, nbytes: int) -> None:
    if points[-1].time_us == time_us:
        points.pop()
    if not points or points[-1].nbytes != nbytes:
        points.append(MemoryPoint(time_us, nbytes))
