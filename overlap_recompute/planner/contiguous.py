"""Contiguous splits of layers over stages: exact search for the one with the shortest iteration by a closed form.

    symbol      meaning
    p, m, L     stages, microbatches, layers
    t[s](i, n)  time of stage s for one microbatch when it holds the n layers from layer i on: forward, backward and
                exposed recompute; None where no plan fits into its memory
    T           max over stages of t[s]
    J           sum over stages of t[s] + (m - 1) T: the first microbatch runs through all stages, then the slowest
                stage sets the pace (1F1B)

For a fixed bound on T, the split with the least sum is a shortest path over (stage, layers used). The bound runs over
the distinct stage times in rising order, and ends where (m - 1) T alone exceeds what was found: exact, and few bounds
are looked at.
"""

import bisect
from collections.abc import Callable, Iterator
from typing import NamedTuple

StageTime = Callable[[int, int, int], float | None]
"""t(stage, first layer, number of layers) in us; None: it does not fit."""


class Found(NamedTuple):
    """A split and its time by the closed form."""

    objective_us: float
    counts: tuple[int, ...]
    """Layers of each stage."""


def iteration_us(times_us: list[float], microbatches: int) -> float:
    """J of the head of this file."""
    return sum(times_us) + (microbatches - 1) * max(times_us)


def best_counts(
    layers: int,
    stages: int,
    microbatches: int,
    stage_time: StageTime,
    *,
    may_be_empty: Callable[[int], bool],
    keep: int = 1,
    limit_us: Callable[[int], float] = lambda stage: float("inf"),
    least_time: Callable[[int, int, int], float] = lambda stage, first, count: 0.0,
) -> list[Found]:
    """The splits with the least J, best first; at most `keep`, one for each bound on T that was looked at.

    Args:
        layers, stages, microbatches: L, p, m.
        stage_time: t; called once for each (stage, first, number) that can occur.
        may_be_empty: whether a stage may hold no layer (it then has the embedding or the head alone).
        keep: how many splits are returned at most.
        limit_us: of a stage; what takes longer is part of no split that is of interest.
        least_time: a bound from below on t, cheaper than t: where it is above the limit, t is not asked for.

    Returns:
        An empty list where no split fits.
    """

    def time_us(stage: int, first: int, count: int) -> float | None:
        return None if least_time(stage, first, count) > limit_us(stage) else stage_time(stage, first, count)

    table = _Table(layers, stages, time_us, may_be_empty)
    bounds = table.bounds()
    found: dict[tuple[int, ...], Found] = {}
    best = float("inf")
    for bound in bounds[table.least_bound(bounds) :]:
        if (microbatches - 1) * bound + table.least_sum_us > best:
            break
        counts = table.cheapest(bound)
        if counts is None:
            continue
        objective = iteration_us(table.times(counts), microbatches)
        best = min(best, objective)
        found[counts] = Found(objective, counts)
    return sorted(found.values())[:keep]


class _Table:
    """All stage times, and shortest paths through them."""

    def __init__(self, layers: int, stages: int, stage_time: StageTime, may_be_empty: Callable[[int], bool]) -> None:
        self.layers, self.stages = layers, stages
        self._empty = [may_be_empty(stage) for stage in range(stages)]
        self._times = [
            {(first, count): stage_time(stage, first, count) for first, count in self._places(stage)}
            for stage in range(stages)
        ]
        self.least_sum_us = sum(min((t for t in row.values() if t is not None), default=0.0) for row in self._times)

    def _places(self, stage: int) -> Iterator[tuple[int, int]]:
        before, after = self._least(range(stage)), self._least(range(stage + 1, self.stages))
        firsts = range(before, self.layers + 1) if stage else range(1)
        for first in firsts:
            rest = self.layers - first - after
            counts = range(0 if self._empty[stage] else 1, rest + 1) if stage < self.stages - 1 else (rest,)
            yield from ((first, count) for count in counts if count > 0 or self._empty[stage])

    def _least(self, stages: range) -> int:
        return sum(not self._empty[stage] for stage in stages)

    def bounds(self) -> list[float]:
        """Distinct stage times, rising."""
        return sorted({t for row in self._times for t in row.values() if t is not None})

    def least_bound(self, bounds: list[float]) -> int:
        """Index of the first bound on T that any split meets."""
        return bisect.bisect_left(bounds, True, key=lambda bound: self.cheapest(bound) is not None)

    def times(self, counts: tuple[int, ...]) -> list[float]:
        """Stage times of a split."""
        first, times = 0, []
        for stage, count in enumerate(counts):
            time_us = self._times[stage][first, count]
            assert time_us is not None, "only splits that fit are asked for"
            times.append(time_us)
            first += count
        return times

    def cheapest(self, bound_us: float) -> tuple[int, ...] | None:
        """The split with the least sum of stage times among those with no stage above the bound."""
        reached: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
        for stage in range(self.stages):
            following: dict[int, tuple[float, tuple[int, ...]]] = {}
            for (first, count), time_us in self._times[stage].items():
                if time_us is None or time_us > bound_us or first not in reached:
                    continue
                sum_us, counts = reached[first]
                candidate = (sum_us + time_us, (*counts, count))
                if first + count not in following or candidate < following[first + count]:
                    following[first + count] = candidate
            reached = following
        return reached[self.layers][1] if self.layers in reached else None


def greedy_counts(
    start: tuple[int, ...], stage_time: StageTime, may_be_empty: Callable[[int], bool]
) -> tuple[int, ...]:
    """The rule of Chen et al. (arXiv 2406.08756): move one layer at a time from the slowest stage to the fastest.

    The stages in between pass a layer on: the split stays contiguous. Ends when the slowest stage gains nothing.
    """
    counts, slowest_us = start, _slowest(start, stage_time)
    while True:
        times = [_time_at(counts, stage, stage_time) for stage in range(len(counts))]
        giver = max(range(len(counts)), key=times.__getitem__)
        taker = min(range(len(counts)), key=times.__getitem__)
        if giver == taker or (counts[giver] == 1 and not may_be_empty(giver)) or counts[giver] == 0:
            return counts
        moved = tuple(n + (stage == taker) - (stage == giver) for stage, n in enumerate(counts))
        moved_us = _slowest(moved, stage_time)
        if moved_us >= slowest_us:
            return counts
        counts, slowest_us = moved, moved_us


def _time_at(counts: tuple[int, ...], stage: int, stage_time: StageTime) -> float:
    time_us = stage_time(stage, sum(counts[:stage]), counts[stage])
    return float("inf") if time_us is None else time_us


def _slowest(counts: tuple[int, ...], stage_time: StageTime) -> float:
    return max(_time_at(counts, stage, stage_time) for stage in range(len(counts)))
