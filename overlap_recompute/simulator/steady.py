"""The steady state: a few of many microbatches are simulated, and the rest is added as whole periods.

NOTE [ why the result is that of the full simulation ]
1. The lists of m and of m' < m microbatches are the same up to the last forward pass of the shorter ones, and between
   warm-up and cool-down they repeat after `unit` microbatches, but for the numbers of these.
2. What a stage does next follows from a bounded past: its own last action and the replays done, the messages that are
   under way, and the last transfer of each link. All of these lie within one filling of the pipeline (`reach` forward
   passes). So if all stages repeated all of that, shifted by one and the same time, for one period and one reach, they
   go on repeating it until the last forward passes come, and the cool-down begins in the same state.
3. Times are whole numbers (NOTE [ time in femtoseconds ]), so "the same" is meant to the last digit.
A run that has not settled when its forward passes end is repeated with more microbatches, in the end with all of them.
"""

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass

from overlap_recompute.plan.actions import Kind
from overlap_recompute.simulator.engine import Run
from overlap_recompute.simulator.stage_run import Done

MOST_UNITS = 8
"""Longest period that is looked for, in units."""
FIRST_INTERLEAVED = 7
"""Microbatches for each stage that are tried first with several chunks: most pipelines have settled by then, and a try
that has not settled costs as much as one that has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What repeats."""

    microbatches: int
    length_fs: int
    done: tuple[tuple[Done, ...], ...]
    """One period of each stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrapolated:
    """A run, and how many periods are to be put into its steady state."""

    run: Run
    microbatches: int
    """Of the run."""
    period: Period | None
    repeats: int

    @property
    def end_fs(self) -> int:
        """Of the passes of all microbatches."""
        return self.run.end_fs + (self.period.length_fs * self.repeats if self.period else 0)


def run_steady(execute: Callable[[int], Run], microbatches: int, *, stages: int, chunks: int) -> Extrapolated:
    """Simulate as few microbatches as show the steady state; see the NOTE.

    Args:
        execute: simulates so many microbatches.
        microbatches: of the iteration.
        stages: of the pipeline.
        chunks: of each stage.
    """
    unit = stages if chunks > 1 else 1
    first = FIRST_INTERLEAVED * stages if chunks > 1 else 4 * stages + 8
    count = _reduced(first, microbatches, unit)
    while count < microbatches:
        run = execute(count)
        period = find_period(run, unit, chunks)
        if period is not None:
            rest = (microbatches - count) % period.microbatches
            if rest == 0:
                repeats = (microbatches - count) // period.microbatches
                return Extrapolated(run=run, microbatches=count, period=period, repeats=repeats)
            count += rest
        else:
            count = _reduced(2 * count, microbatches, unit)
    run = execute(microbatches)
    return Extrapolated(run=run, microbatches=microbatches, period=find_period(run, unit, chunks), repeats=0)


def _reduced(wanted: int, microbatches: int, unit: int) -> int:
    """At least `wanted` microbatches that can be filled up to `microbatches` by whole units, if there are that many."""
    return microbatches if wanted >= microbatches else wanted + (microbatches - wanted) % unit


def find_period(run: Run, unit: int, chunks: int) -> Period | None:
    """The shortest period in which all stages repeat themselves up to their last forward pass; None: they do not."""
    forward = [[place for place, done in enumerate(rows) if done.action.kind is Kind.F] for rows in run.done]
    warm_ups = [_warm_up(rows, places) for rows, places in zip(run.done, forward, strict=True)]
    reach = max(warm_ups) + 1
    for units in range(1, MOST_UNITS + 1):
        passes = units * unit * chunks
        if any(len(places) < warm_up + 2 * passes + reach for places, warm_up in zip(forward, warm_ups, strict=True)):
            return None
        marks = [(places[-1 - passes - reach], places[-1 - passes], places[-1]) for places in forward]
        lengths = {
            rows[last].end_fs - rows[middle].end_fs for rows, (_, middle, last) in zip(run.done, marks, strict=True)
        }
        length_fs = lengths.pop()
        if not lengths and all(
            _repeats(rows, *places, units * unit, length_fs) for rows, places in zip(run.done, marks, strict=True)
        ):
            done = tuple(
                tuple(rows[middle + 1 : last + 1]) for rows, (_, middle, last) in zip(run.done, marks, strict=True)
            )
            return Period(microbatches=units * unit, length_fs=length_fs, done=done)
    return None


def _warm_up(rows: list[Done], places: list[int]) -> int:
    """Forward passes before the first backward pass."""
    first = next(place for place, done in enumerate(rows) if done.action.kind is Kind.B)
    return bisect(places, first)


def _repeats(rows: list[Done], first: int, middle: int, last: int, microbatches: int, length_fs: int) -> bool:
    """Whether everything from `first` to `last` is what was one period earlier, shifted."""
    back = last - middle
    return all(
        _is_shifted(rows[place], rows[place - back], microbatches, length_fs) for place in range(first, last + 1)
    )


def _is_shifted(late: Done, early: Done, microbatches: int, length_fs: int) -> bool:
    return (
        late.begin_fs - early.begin_fs == late.end_fs - early.end_fs == late.arrival_fs - early.arrival_fs == length_fs
        and late.outcome is early.outcome
        and late.action.kind is early.action.kind
        and late.action.chunk == early.action.chunk
        and late.action.microbatch - early.action.microbatch == microbatches
        and late.before == early.before
    )
