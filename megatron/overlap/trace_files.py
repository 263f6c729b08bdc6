"""Joining the traces of ranks into one file; standard library only."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overlap_recompute.plan.errors import DataError


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events of one trace; of one that a killed rank left behind, those that are complete.

    Raises:
        DataError: the file is no trace.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _no_trace(path, str(error)) from None
    try:
        events = json.loads(text)
    except json.JSONDecodeError:
        events = _complete_lines(text)
    if isinstance(events, dict):
        events = events.get("traceEvents")
    if not isinstance(events, list) or not events or not all(isinstance(event, dict) for event in events):
        raise _no_trace(path, "no list of events")
    return events


def merge_traces(paths: Sequence[Path], output: Path) -> int:
    """Join the traces of several ranks; the first span of all starts at 0. Returns the number of events.

    Args:
        paths: one file per rank.
        output: replaced in one go when it is complete.

    Raises:
        DataError: one of the files is no trace.
    """
    events = [event for path in paths for event in read_trace(path)]
    origin_us = min((event["ts"] for event in events if "ts" in event), default=0.0)
    for event in events:
        if "ts" in event:
            event["ts"] = round(event["ts"] - origin_us, 3)
    descriptor, unfinished = tempfile.mkstemp(dir=output.absolute().parent, prefix=f".{output.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, stream, separators=(",", ":"))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, output)
    except BaseException:
        os.unlink(unfinished)
        raise
    return len(events)


def _complete_lines(text: str) -> list[dict[str, Any]]:
    """One event a line is how traces are written; the last line may be cut short."""
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line.strip().rstrip(","))
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def _no_trace(path: Path, why: str) -> DataError:
    return DataError(
        f"{path}, which is no trace ({why})", "a file that --overlap-recompute-trace wrote", "name other files"
    )
