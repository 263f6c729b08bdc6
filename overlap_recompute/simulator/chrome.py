"""A simulation as files: a trace for Perfetto or chrome://tracing, and CSV tables of spans and stages.

The trace has a process for each stage with lanes as in a measured trace: `schedule`, `hidden`, `exposed` under the same
names, then the waits, the link inside of the stage, and its sends to other stages.
"""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from overlap_recompute.simulator.timeline import SimulationResult, Span, StageResult

THREADS = ("schedule", "hidden", "exposed", "waits", "tp", "pp")
_THREAD_OF = {"compute": "schedule", "tp": "tp", "pp": "pp", "wait": "waits"}
SPAN_COLUMNS = ("stage", "lane", "name", "begin_us", "end_us", "hidden")
STAGE_COLUMNS = (
    "stage", "compute_us", "hidden_us", "exposed_us", "wait_us", "bubble_us", "peak_bytes", "held_peak_bytes",
)  # fmt: skip


def trace_text(result: SimulationResult) -> str:
    """The trace as JSON, one event a line; of a result with a timeline."""
    events = [json.dumps(event, separators=(",", ":")) for event in _events(result)]
    return "[\n" + ",\n".join(events) + "\n]\n"


def spans_csv(result: SimulationResult) -> str:
    """The spans of a result with a timeline, one a line."""
    return _csv(SPAN_COLUMNS, [[getattr(span, column) for column in SPAN_COLUMNS] for span in result.spans])


def stages_csv(result: SimulationResult) -> str:
    """The stages, one a line; of each kind of window its number, length and filled part, in microseconds."""
    kinds = sorted({window.kind for stage in result.stages for window in stage.windows})
    header = [*STAGE_COLUMNS, *(f"{kind}_{what}" for kind in kinds for what in ("count", "length_us", "filled_us"))]
    return _csv(header, [_stage_cells(stage, kinds) for stage in result.stages])


def _events(result: SimulationResult) -> Iterator[dict[str, Any]]:
    for stage in result.stages:
        process = {"ph": "M", "pid": stage.stage}
        yield {**process, "name": "process_name", "args": {"name": f"stage {stage.stage} (simulated)"}}
        for number, thread in enumerate(THREADS):
            yield {**process, "tid": number, "name": "thread_name", "args": {"name": thread}}
            yield {**process, "tid": number, "name": "thread_sort_index", "args": {"sort_index": number}}
        for point in stage.memory:
            args = {"bytes": point.nbytes}
            yield {"ph": "C", "pid": stage.stage, "name": "memory", "ts": point.time_us, "args": args}
    for span in result.spans:
        thread = _thread_of(span)
        yield {
            "ph": "X", "name": span.name, "pid": span.stage, "tid": THREADS.index(thread), "ts": span.begin_us,
            "dur": span.end_us - span.begin_us,
        }  # fmt: skip


def _thread_of(span: Span) -> str:
    if span.lane == "recompute":
        return "hidden" if span.hidden else "exposed"
    return _THREAD_OF[span.lane]


def _stage_cells(stage: StageResult, kinds: list[str]) -> list[Any]:
    cells = [getattr(stage, column) for column in STAGE_COLUMNS]
    windows = {window.kind: window for window in stage.windows}
    for kind in kinds:
        window = windows.get(kind)
        cells += [0, 0.0, 0.0] if window is None else [window.count, window.length_us, window.filled_us]
    return cells


def _csv(header: tuple[str, ...] | list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
