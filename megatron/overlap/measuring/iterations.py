"""Samples of a rank: iteration after iteration, sorted by what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron.overlap.measuring.marks import At, Mark
from megatron.overlap.measuring.passes import BEFORE, BEHIND, MeasuredPass, Reads, Step, backward_pass, forward_pass

Steps = list[Step]


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationTimes:
    """Where the time of one iteration went on this rank."""

    iteration_us: float
    passes_us: float
    update_us: float
    """Before the first pass, and from the end of the last one."""
    marks: int

    @property
    def between_us(self) -> float:
        """Between passes."""
        return max(0.0, self.iteration_us - self.passes_us - self.update_us)


@dataclass(slots=True, kw_only=True)
class Samples:
    """All of it."""

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
        iteration_us = times_us[-1] - times_us[0]
        within_us = passes[-1].end_us - passes[0].begin_us if passes else 0.0
        self.times.append(
            IterationTimes(
                iteration_us=iteration_us,
                passes_us=sum(found.end_us - found.begin_us for found in passes),
                update_us=iteration_us - within_us,
                marks=len(marks),
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
