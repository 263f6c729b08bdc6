"""From the marks of an event ring to the spans of a trace (NOTE [ values of marks ] in step_marks.py)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from megatron.overlap.step_marks import BEGIN, END, StepMarks, microbatch_of, wait_of
from overlap_recompute.plan.actions import Action
from overlap_recompute.runtime.marks import read_value


class Span(NamedTuple):
    """From one `time.monotonic_ns()` to another, in a lane of the rank's trace."""

    lane: str
    name: str
    begin_ns: int
    end_ns: int
    details: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class LaneTimes:
    """How long the lanes of a rank were busy."""

    hidden_ns: int = 0
    exposed_ns: int = 0
    waits_ns: Counter[str] = field(default_factory=Counter)
    """By kind of wait."""
    filled_ns: Counter[str] = field(default_factory=Counter)
    """The part of them in which a hidden replay ran."""

    def add(self, spans: Sequence[Span]) -> None:
        """Add the spans of a step up; a lane does one thing at a time."""
        hidden = sorted((span.begin_ns, span.end_ns) for span in spans if span.lane == "hidden")
        self.hidden_ns += sum(end_ns - begin_ns for begin_ns, end_ns in hidden)
        self.exposed_ns += sum(span.end_ns - span.begin_ns for span in spans if span.lane == "exposed")
        first = 0
        for wait in sorted((span for span in spans if span.lane == "windows"), key=lambda span: span.begin_ns):
            self.waits_ns[wait.name] += wait.end_ns - wait.begin_ns
            while first < len(hidden) and hidden[first][1] <= wait.begin_ns:
                first += 1
            place = first
            while place < len(hidden) and hidden[place][0] < wait.end_ns:
                begin_ns, end_ns = hidden[place]
                self.filled_ns[wait.name] += min(end_ns, wait.end_ns) - max(begin_ns, wait.begin_ns)
                place += 1


class SpanReader:
    """Pairs begins and ends; what has begun waits for its end, also over several readings."""

    __slots__ = ("_marks", "_begun")

    def __init__(self, marks: StepMarks) -> None:
        self._marks = marks
        self._begun: dict[tuple[int, int], int] = {}

    def read(self, drained: np.ndarray) -> Iterator[Span]:
        """The spans that end in these marks, in that order; an end without a begin, which was overwritten, is none."""
        names, waits = self._marks.ring.names, self._marks.waits
        for time_ns, value, _, name, _, kind in drained.tolist():
            place = (name, 0 if name in waits else value)
            if kind == BEGIN:
                self._begun[place] = time_ns
                continue
            begin_ns = self._begun.pop(place, None)
            if begin_ns is not None:
                span = self._span(names[name], name, value, begin_ns, time_ns)
                yield span if kind == END else span._replace(details={**span.details, "failed": True})

    def unfinished(self, now_ns: int) -> list[Span]:
        """What has begun and not ended, up to now."""
        names = self._marks.ring.names
        spans = [self._span(names[name], name, value, at_ns, now_ns) for (name, value), at_ns in self._begun.items()]
        return [span._replace(details={**span.details, "unfinished": True}) for span in spans]

    def _span(self, text: str, name: int, value: int, begin_ns: int, end_ns: int) -> Span:
        action, wait = self._marks.passes.get(name), self._marks.waits.get(name)
        if action is not None:
            chunk, microbatch = microbatch_of(value)
            label = str(Action(kind=action, chunk=chunk, microbatch=microbatch))
            return Span("schedule", label, begin_ns, end_ns, {})
        if wait is not None:
            units, filled_ns = wait_of(value)
            return Span("windows", text, begin_ns, end_ns, {"units": units, "filled_us": filled_ns / 1000})
        replay = read_value(value)
        chunk, microbatch = microbatch_of(replay.microbatch)
        lane = "hidden" if replay.hidden else "exposed"
        return Span(lane, f"{text} {chunk}.{microbatch}", begin_ns, end_ns, {})
