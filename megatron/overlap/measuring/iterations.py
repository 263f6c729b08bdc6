"""Samples of a rank: iteration after iteration, sorted by what was measured."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron.overlap.measuring.marks import At, Mark
from megatron.overlap.measuring.passes import BEFORE, BEHIND, MeasuredPass, Reads, Step, backward_pass, forward_pass

Steps = list[Step]
DISTURBED = 1.2
"""An iteration that takes so many times the median one says nothing about the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationTimes:
    """Where the time of one iteration went on this rank."""

    iteration_us: float
    passes_us: float
    update_us: float
    """Before the first pass, and from the end of the last one."""
    update_communication_us: float
    """The part of it in collectives."""
    marks: int

    @property
    def between_us(self) -> float:
        """Between passes."""
        return max(0.0, self.iteration_us - self.passes_us - self.update_us)


@dataclass(slots=True, kw_only=True)
class Samples:
    """All of it, or that of some iterations."""

    chunks: int
    """Model chunks of this rank."""
    forward: dict[int, list[Steps]] = field(default_factory=dict)
    """Of each layer."""
    backward: dict[int, list[Steps]] = field(default_factory=dict)
    units: dict[int, list[dict[str, float]]] = field(default_factory=dict)
    before: tuple[list[Steps], list[Steps]] = field(default_factory=lambda: ([], []))
    """What comes before the first layer of the first chunk: forward and backward."""
    behind: tuple[list[Steps], list[Steps]] = field(default_factory=lambda: ([], []))
    """What comes behind the last layer of the last chunk."""
    times: list[IterationTimes] = field(default_factory=list)

    def add(self, marks: Sequence[Mark], times_us: Sequence[float], reads: Reads) -> None:
        """Sort the marks of an iteration."""
        iteration_us, count = times_us[-1] - times_us[0], len(marks)
        marks, times_us, outside_us = without_outside(marks, times_us)
        passes: list[MeasuredPass] = []
        for begin, end in spans_of(marks):
            part, when = marks[begin : end + 1], times_us[begin : end + 1]
            if marks[end].at is At.PASS_END:
                found = forward_pass(part, when)
                self._sort(found, self.forward, 0)
                for layer, units in found.units.items():
                    self.units.setdefault(layer, []).append(units)
            else:
                found = backward_pass(part, when, reads)
                self._sort(found, self.backward, 1)
            passes.append(found)
        first_us, last_us = (passes[0].begin_us, passes[-1].end_us) if passes else (0.0, 0.0)
        self.times.append(
            IterationTimes(
                iteration_us=iteration_us,
                passes_us=sum(found.end_us - found.begin_us for found in passes),
                update_us=iteration_us - (last_us - first_us),
                update_communication_us=sum(
                    end_us - begin_us for begin_us, end_us in outside_us if begin_us >= last_us or end_us <= first_us
                ),
                marks=count,
            )
        )

    def _sort(self, found: MeasuredPass, layers: dict[int, list[Steps]], direction: int) -> None:
        for part, steps in found.parts.items():
            if part >= 0:
                layers.setdefault(part, []).append(steps)
            elif part == BEFORE and found.chunk == 0:
                self.before[direction].append(steps)
            elif part == BEHIND and found.chunk == self.chunks - 1:
                self.behind[direction].append(steps)


def usual(iterations: Sequence[Samples], chunks: int) -> Samples:
    """The samples of several iterations together, without those that were disturbed as a whole."""
    lengths_us = [time.iteration_us for samples in iterations for time in samples.times]
    longest_us = DISTURBED * statistics.median(lengths_us) if lengths_us else 0.0
    joined = Samples(chunks=chunks)
    for samples in iterations:
        if any(time.iteration_us > longest_us for time in samples.times):
            continue
        for mine, more in ((joined.forward, samples.forward), (joined.backward, samples.backward)):
            for layer, passes in more.items():
                mine.setdefault(layer, []).extend(passes)
        for layer, units in samples.units.items():
            joined.units.setdefault(layer, []).extend(units)
        for own, others in zip((*joined.before, *joined.behind), (*samples.before, *samples.behind), strict=True):
            own.extend(others)
        joined.times.extend(samples.times)
    return joined


def without_outside(
    marks: Sequence[Mark], times_us: Sequence[float]
) -> tuple[list[Mark], list[float], list[tuple[float, float]]]:
    """The other marks with their times, and begin and end of each collective that belongs to no layer."""
    kept: list[Mark] = []
    kept_us: list[float] = []
    found: list[tuple[float, float]] = []
    begin_us = 0.0
    for mark, time_us in zip(marks, times_us, strict=True):
        if mark.at is At.OUTSIDE:
            begin_us = time_us
        elif mark.at is At.OUTSIDE_END:
            found.append((begin_us, time_us))
        else:
            kept.append(mark)
            kept_us.append(time_us)
    return kept, kept_us, found


def spans_of(marks: Sequence[Mark]) -> list[tuple[int, int]]:
    """First and last mark of each pass: from PASS to PASS_END, and from the first gradient to BACKWARD_END."""
    outside = (At.ITERATION, At.STEP_END, At.ITERATION_END)
    ends = (At.PASS_END, At.BACKWARD_END)
    spans = []
    begin: int | None = None
    for number, mark in enumerate(marks):
        if mark.at in outside:
            begin = None
        elif begin is None:
            begin = number
        if mark.at in ends and begin is not None:
            spans.append((begin, number))
            begin = None
    return spans
