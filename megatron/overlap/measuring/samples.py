"""Means and spreads of what was measured many times.

NOTE [ means ]
Parts of a pass are to add up to the pass, and passes to an iteration. Medians do not add up: times have their tail on
the slow side, and some have two modes (memory that the allocator had to ask for anew). Every iteration has its share
of slow parts, so leaving them out leaves out a part of the iteration. Therefore parts are means, and what must not
count is left out by the iteration (`iterations.usual`): one that was disturbed as a whole.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from megatron.overlap.measuring.passes import Step
from overlap_recompute.plan.profile import COMPUTE, Pass, PassStep

Cap = Callable[[Step], float]
"""The part of a launch-to-wait time in which the communication was in flight."""


def mean_us(values: Iterable[float]) -> float:
    """The mean; 0 of nothing."""
    found = list(values)
    return statistics.fmean(found) if found else 0.0


def median_us(values: Iterable[float]) -> float:
    """The median; 0 of nothing."""
    found = sorted(values)
    return statistics.median(found) if found else 0.0


def spread_us(values: Iterable[float]) -> float:
    """Between the quartiles; 0 of fewer than two."""
    found = sorted(values)
    if len(found) < 2:
        return 0.0
    low, _, high = statistics.quantiles(found, n=4, method="inclusive")
    return max(0.0, high - low)


def typical_pass(samples: Sequence[Sequence[Step]], hidden_us: Cap) -> tuple[Pass, int]:
    """The steps with their means, position by position, and how many samples had these steps.

    Passes of one kind of layer have the same steps, but for experts that get no token: the most frequent ones count.
    """
    if not samples:
        return (), 0
    shapes = Counter(_shape_of(steps) for steps in samples)
    shape, count = shapes.most_common(1)[0]
    alike = [steps for steps in samples if _shape_of(steps) == shape]
    columns = zip(*alike, strict=True)
    return tuple(_typical(column, hidden_us) for column in columns), count


def _shape_of(steps: Sequence[Step]) -> tuple[tuple[str, str], ...]:
    return tuple((step.kind, step.name) for step in steps)


def _typical(column: Sequence[Step], hidden_us: Cap) -> PassStep:
    first = column[0]
    is_window = first.kind != COMPUTE
    return PassStep(
        kind=first.kind,
        name=first.name,
        duration_us=mean_us(step.us for step in column),
        spread_us=spread_us(step.us for step in column),
        needs=first.needs,
        hidden_us=mean_us(hidden_us(step) for step in column) if is_window else 0.0,
        payload_bytes=int(median_us(step.nbytes for step in column)) if is_window else 0,
    )


def merge_passes(passes: Sequence[Pass]) -> Pass:
    """Medians, position by position, of what ranks have found; the most frequent shape counts."""
    if not passes:
        return ()
    shapes = Counter(tuple((step.kind, step.name) for step in steps) for steps in passes)
    shape = shapes.most_common(1)[0][0]
    alike = [steps for steps in passes if tuple((step.kind, step.name) for step in steps) == shape]
    return tuple(_merged(column) for column in zip(*alike, strict=True))


def _merged(column: Sequence[PassStep]) -> PassStep:
    first = column[0]
    return PassStep(
        kind=first.kind,
        name=first.name,
        duration_us=median_us(step.duration_us for step in column),
        spread_us=median_us(step.spread_us for step in column),
        needs=first.needs,
        hidden_us=median_us(step.hidden_us for step in column),
        payload_bytes=max(step.payload_bytes for step in column),
    )


def total_us(steps: Iterable[PassStep]) -> float:
    """Of a pass, windows included."""
    return sum(step.duration_us for step in steps)


def means_of(samples: Iterable[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and spread by name."""
    columns: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in sample.items():
            columns.setdefault(name, []).append(value)
    return {name: (mean_us(values), spread_us(values)) for name, values in columns.items()}
