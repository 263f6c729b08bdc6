"""A run's traces as what a simulation yields: steps, the spans of a typical one, and where its time went.

NOTE [ steps of a trace ]
1. A step begins with the forward pass `0F0`, on every rank, and has the forward and backward passes of all microbatches
   and chunks. A step that is not complete on every rank is left out: a trace may end in the middle of one.
2. What lies between two steps (a stage that waits for its first input) belongs to the later one. Times count from the
   first pass on any rank; what a rank waited before that is cut off.
3. The first step of a trace is not typical (memory is taken from the system) and is left out where others are there.
"""

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from overlap_recompute.plan.errors import DataError
from overlap_recompute.plan.run_trace import TraceOrigin
from overlap_recompute.report.traces import RankTrace, TraceSpan
from overlap_recompute.simulator.timeline import Lane, Span

MOST_ROWS = 16
"""Of a picture; of more ranks the first of each stage are drawn."""
_WARM_UP = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """One pipeline stage in a step: means over its ranks, of these the medians over the steps."""

    stage: int
    hidden_us: float
    """Recompute in windows, with what ran on after they had closed."""
    exposed_us: float
    windows_us: tuple[tuple[str, float], ...]
    """(kind, time) of those that occur."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Steps of a real run."""

    origin: TraceOrigin
    """Of its first rank."""
    rows: tuple[str, ...]
    """Names of the ranks that are drawn; lines are parted by line breaks."""
    spans: tuple[Span, ...]
    """Of the drawn step, as a simulation has them; their `stage` is the row."""
    number: int
    """Of the drawn step in the trace, from 1."""
    steps: int
    """That count."""
    length_us: float
    """Of the drawn step, from the first pass on any rank to the last one's end."""
    shortest_us: float
    longest_us: float
    iteration_us: float | None
    """Median from the begin of a step to that of the next; None: there is one step."""
    stages: tuple[StageTimes, ...]


def measured_of(traces: Sequence[RankTrace], source: str) -> Measured:
    """What the traces of a run say.

    Args:
        traces: of all ranks, by rank.
        source: for messages.

    Raises:
        DataError: no step is complete on every rank.
    """
    ranks = [_steps_of(trace) for trace in traces]
    complete = min(map(len, ranks))
    if not complete:
        raise DataError(
            f"{source}, a trace in which no step is complete on every rank", "at least one", "let the run go on longer"
        )
    first = _WARM_UP if complete > _WARM_UP + 1 else 0
    numbers = range(first, complete)
    begins = [min(_passes(steps[number])[0].begin_us for steps in ranks) for number in range(complete)]
    lengths = {number: max(_passes(steps[number])[-1].end_us for steps in ranks) - begins[number] for number in numbers}
    number = sorted(numbers, key=lambda step: (lengths[step], step))[(len(numbers) - 1) // 2]
    gaps = [begins[step + 1] - begins[step] for step in numbers if step + 1 < complete]
    drawn = _drawn(traces)
    return Measured(
        origin=traces[0].origin,
        rows=tuple(_row_name(traces[rank].origin) for rank in drawn),
        spans=tuple(
            span for row, rank in enumerate(drawn) for span in _spans(row, ranks[rank][number], begins[number])
        ),
        number=number + 1,
        steps=len(numbers),
        length_us=lengths[number],
        shortest_us=min(lengths.values()),
        longest_us=max(lengths.values()),
        iteration_us=statistics.median(gaps) if gaps else None,
        stages=tuple(
            _stage_times(
                stage,
                [steps for trace, steps in zip(traces, ranks, strict=True) if trace.origin.stage == stage],
                {number: begins[number] for number in numbers},
            )
            for stage in sorted({trace.origin.stage for trace in traces})
        ),
    )


def _steps_of(trace: RankTrace) -> list[list[TraceSpan]]:
    """The spans of each step of a rank, those of the last only if it is complete."""
    starts: list[int] = []
    passes = [span for span in trace.spans if span.lane == "schedule"]
    for place, span in enumerate(passes):
        if span.name == "0F0" or not starts:
            starts.append(place)
    wanted = {
        f"{chunk}{kind}{number}"
        for chunk in range(trace.origin.chunks)
        for kind in "FB"
        for number in range(trace.origin.microbatches)
    }
    ends_us = []
    for start, end in zip(starts, [*starts[1:], len(passes)], strict=True):
        if {span.name for span in passes[start:end]} != wanted or end - start != len(wanted):
            break
        ends_us.append(max(span.end_us for span in passes[start:end]))
    steps: list[list[TraceSpan]] = [[] for _ in ends_us]
    for span in trace.spans:
        place = bisect_right(ends_us, span.begin_us)
        if place < len(steps):
            steps[place].append(span)
    return steps


def _passes(step: Sequence[TraceSpan]) -> list[TraceSpan]:
    return [span for span in step if span.lane == "schedule"]


def _drawn(traces: Sequence[RankTrace]) -> list[int]:
    if len(traces) <= MOST_ROWS:
        return list(range(len(traces)))
    firsts: dict[int, int] = {}
    for rank, trace in enumerate(traces):
        firsts.setdefault(trace.origin.stage, rank)
    return [firsts[stage] for stage in sorted(firsts)]


def _row_name(origin: TraceOrigin) -> str:
    return f"rank {origin.rank}" + (f"\nstage {origin.stage}" if origin.stages > 1 else "")


def _spans(row: int, step: Sequence[TraceSpan], begin_us: float) -> list[Span]:
    """A rank's step as a simulation would draw it: passes cut at windows, and what ran in these."""
    passes = _passes(step)
    begins = [span.begin_us for span in passes]
    windows: list[list[TraceSpan]] = [[] for _ in passes]
    spans = []

    def add(lane: Lane, name: str, start_us: float, end_us: float, hidden: bool = False) -> None:
        if end_us > begin_us:
            start_us = max(0.0, start_us - begin_us)
            spans.append(
                Span(stage=row, lane=lane, name=name, begin_us=start_us, end_us=end_us - begin_us, hidden=hidden)
            )

    for span in step:
        if span.lane in ("hidden", "exposed"):
            add("recompute", span.name, span.begin_us, span.end_us, hidden=span.lane == "hidden")
        elif span.lane == "windows":
            place = bisect_right(begins, span.begin_us) - 1
            inside = place >= 0 and span.begin_us < passes[place].end_us
            name = f"{passes[place].name}.{span.name}" if inside else span.name
            add("wait", name, span.begin_us, span.end_us)
            if inside:
                windows[place].append(span)
                add("tp", name, span.begin_us, span.end_us)
    for each, waits in zip(passes, windows, strict=True):
        at_us = each.begin_us
        for wait in waits:
            if wait.begin_us > at_us:
                add("compute", each.name, at_us, wait.begin_us)
            at_us = max(at_us, wait.end_us)
        if at_us < each.end_us:
            add("compute", each.name, at_us, each.end_us)
    return sorted(spans, key=lambda span: (span.begin_us, span.end_us, span.lane))


def _stage_times(stage: int, ranks: Sequence[list[list[TraceSpan]]], begins: dict[int, float]) -> StageTimes:
    found: dict[str, list[float]] = {}
    names = {span.name for steps in ranks for number in begins for span in steps[number] if span.lane == "windows"}
    for number, begin_us in begins.items():
        sums = dict.fromkeys(("hidden", "exposed", *sorted(names)), 0.0)
        for steps in ranks:
            for span in steps[number]:
                if span.lane != "schedule":
                    key = span.name if span.lane == "windows" else span.lane
                    sums[key] += max(0.0, span.end_us - max(span.begin_us, begin_us))
        for key, value_us in sums.items():
            found.setdefault(key, []).append(value_us / len(ranks))
    medians = {key: statistics.median(values) for key, values in found.items()}
    return StageTimes(
        stage=stage,
        hidden_us=medians["hidden"],
        exposed_us=medians["exposed"],
        windows_us=tuple((name, medians[name]) for name in sorted(names)),
    )
