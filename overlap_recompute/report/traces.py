"""Reading what `--overlap-recompute-trace` wrote: strictly, since a page must not be made of half a run."""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from overlap_recompute.plan.codec import FileError, from_data
from overlap_recompute.plan.errors import DataError
from overlap_recompute.plan.run_trace import LANES, RUN_EVENT, TRACE_VERSION, TraceOrigin
from overlap_recompute.plan.windows import WindowKind

MOST_FILE_BYTES, MOST_BYTES = 1 << 28, 1 << 30
"""Of one file (a rank's million spans have room in it), and of all files of a run together."""
_OWN = ("rank", "stage", "window_kinds", "prefetch_cap_bytes", "taken")
"""What ranks of one run may tell differently."""
_MOST_NAME = 200
_MOST_US = 1e17
"""A time in microseconds since 1970, with room."""
_NAMES = {
    "schedule": re.compile(r"[0-9]{1,6}[FB][0-9]{1,9}"),
    "windows": re.compile("|".join(kind.value for kind in WindowKind)),
    "hidden": re.compile(r"R\(.*", re.DOTALL),
    "exposed": re.compile(r"R\(.*", re.DOTALL),
}


class TraceSpan(NamedTuple):
    """A stretch of a rank's time, as the trace has it."""

    lane: str
    name: str
    begin_us: float
    end_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTrace:
    """The trace of one rank."""

    origin: TraceOrigin
    spans: tuple[TraceSpan, ...]
    """By begin."""


def read_traces(path: Path) -> tuple[RankTrace, ...]:
    """The traces of all ranks of a run, by rank.

    Args:
        path: the folder that the run wrote, or one file of joined ranks.

    Raises:
        DataError: there are none, one cannot be read or is cut short, says nothing about its run, or a rank is missing.
    """
    files = _files(path)
    sizes = [_size(file) for file in files]
    for file, nbytes in zip(files, sizes, strict=True):
        _check_size(file, nbytes, MOST_FILE_BYTES)
    _check_size(path, sum(sizes), MOST_BYTES)
    traces = [trace for file in files for trace in _read(file)]
    traces.sort(key=lambda trace: trace.origin.rank)
    _check_one_run(traces, path)
    return tuple(traces)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("rank-*.json"))
    if not files:
        raise DataError(
            f"{path}, a folder without traces", "rank-00000.json and so on in it",
            "name the folder of --overlap-recompute-trace, once the run has ended",
        )  # fmt: skip
    return files


def _size(file: Path) -> int:
    if not file.is_file():
        raise _unreadable(file, "there is no such file")
    try:
        return file.stat().st_size
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from None


def _check_size(path: Path, nbytes: int, most: int) -> None:
    if nbytes > most:
        raise DataError(
            f"{path} with {nbytes:,} bytes of traces", f"at most {most:,}", "trace a shorter run, with fewer iterations"
        )


def _read(file: Path) -> list[RankTrace]:
    try:
        events = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, f"cut short, or no JSON: {error}") from None
    if isinstance(events, dict):
        events = events.get("traceEvents")
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise _unreadable(file, "no list of events")
    return _by_rank(events, file)


def _by_rank(events: list[dict[str, Any]], file: Path) -> list[RankTrace]:
    origins: dict[int, TraceOrigin] = {}
    spans: dict[int, list[TraceSpan]] = {}
    for number, event in enumerate(events):
        place = f"event {number}"
        if event.get("ph") == "M" and event.get("name") == RUN_EVENT:
            origin = _origin(event, file, place)
            if origin.rank in origins:
                raise _unreadable(file, f"rank {origin.rank} is in it twice")
            origins[origin.rank] = origin
        elif event.get("ph") == "X":
            span = _span(event, file, place)
            spans.setdefault(event["pid"], []).append(span)
    strangers = spans.keys() - origins.keys()
    if strangers or not origins:
        raise DataError(
            f"{file}, which does not say what plan or policy its run carried out", "a trace that does",
            "trace the run again with this release",
        )  # fmt: skip
    return [
        RankTrace(origin=origin, spans=tuple(sorted(spans.get(rank, []), key=lambda span: span.begin_us)))
        for rank, origin in origins.items()
    ]


def _origin(event: dict[str, Any], file: Path, place: str) -> TraceOrigin:
    try:
        origin = from_data(event.get("args"), TraceOrigin, TRACE_VERSION, f"{file}, {place}")
    except FileError as error:
        raise DataError(error.found, error.expected, "trace the run again with this release") from None
    if event.get("pid") != origin.rank or not 0 <= origin.rank < origin.ranks or not 0 <= origin.stage < origin.stages:
        raise _unreadable(file, f"{place} is of rank {origin.rank} of {origin.ranks}, stage {origin.stage}")
    return origin


def _span(event: dict[str, Any], file: Path, place: str) -> TraceSpan:
    lane, name = _lane(event.get("tid")), event.get("name")
    begin_us, length_us = _time_us(event.get("ts")), _time_us(event.get("dur"))
    named = lane is not None and isinstance(name, str) and len(name) <= _MOST_NAME and _NAMES[lane].fullmatch(name)
    if lane is None or not named or begin_us is None or length_us is None or type(event.get("pid")) is not int:
        raise _unreadable(file, f"{place} is no span of a training run")
    return TraceSpan(lane, str(name), begin_us, begin_us + length_us)


def _lane(thread: Any) -> str | None:
    return LANES[thread] if type(thread) is int and 0 <= thread < len(LANES) else None


def _time_us(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < _MOST_US else None


def _check_one_run(traces: list[RankTrace], path: Path) -> None:
    runs = {_run_of(trace.origin) for trace in traces}
    if len(runs) > 1:
        raise DataError(
            f"traces of {len(runs)} different runs in {path}", "those of one run", "name the folder of one run"
        )
    stages = traces[0].origin.stages
    if {trace.origin.stage for trace in traces} != set(range(stages)) and len(traces) == traces[0].origin.ranks:
        raise _unreadable(path, f"its ranks are not those of {stages} stages")
    ranks, present = traces[0].origin.ranks, [trace.origin.rank for trace in traces]
    missing = sorted(set(range(ranks)) - set(present))
    if len(present) != ranks:
        which = f", rank {missing[0]} is missing" if missing else ", one of them twice"
        raise DataError(
            f"traces of {len(present)} ranks of {ranks} in {path}{which}", "one trace of each rank",
            "name the folder with the traces of all ranks, or the file that tools/merge_traces.py joined them into",
        )  # fmt: skip


def _run_of(origin: TraceOrigin) -> tuple[object, ...]:
    """What all ranks of a run have in common."""
    return tuple(getattr(origin, field.name) for field in fields(TraceOrigin) if field.name not in _OWN)


def _unreadable(file: Path, why: str) -> DataError:
    return DataError(
        f"{file}, which is no complete trace ({why})", "what --overlap-recompute-trace writes",
        "name the traces of a run that has ended",
    )  # fmt: skip
