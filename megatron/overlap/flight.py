"""The flight recorder: when a step fails, or never ends, the last marks of the rank become a trace (docs/faults.md)."""

import datetime
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from megatron.overlap.settings import OverlapSettings
from megatron.overlap.spans import SpanReader
from megatron.overlap.step_marks import StepMarks
from megatron.overlap.trace import header_of, span_event

logger = logging.getLogger(__name__)

FLIGHT_EVENT = "overlap_recompute_flight"
"""Name of the metadata event that says why and when the file was written."""
LAST_MARKS = 8192
"""Read into the file, half a MiB of spans: the end of a long step, or many short ones."""
MOST_S = 0.5
"""An error waits for its file no longer: the other ranks are told of it afterwards, within a second."""
_MOST_CHARACTERS = 500


class FlightRecorder:
    """Writes the file on a thread of its own, so that a disk that hangs does not hold the error back."""

    __slots__ = ("path", "_settings", "_marks", "_one_at_a_time", "_is_left", "_is_final")

    def __init__(self, settings: OverlapSettings, marks: StepMarks) -> None:
        self._settings, self._marks = settings, marks
        folder = settings.flight_folder if settings.trace_folder is None else settings.trace_folder
        self.path = None if folder is None else folder / f"flight-rank-{settings.rank:05d}.json"
        """None where the run writes no files."""
        self._one_at_a_time = threading.Lock()
        self._is_left = self._is_final = False

    def write_once(self, why: str) -> None:
        """Leave the last marks as `write` does, unless that was done: for a thread that ends a stuck process."""
        if self._one_at_a_time.acquire(timeout=MOST_S):
            try:
                self._is_final = True
                if not self._is_left:
                    self._write(why)
            finally:
                self._one_at_a_time.release()

    def write(self, error: BaseException) -> np.ndarray | None:
        """Leave the last marks in the file; returns soon after `MOST_S` at the latest, and raises nothing.

        Args:
            error: what ended the step; its text goes into the file.

        Returns:
            All marks since the ring was drained last, or None if nobody asked it, or if `write_once` was before.
        """
        if not self._one_at_a_time.acquire(timeout=MOST_S):
            return None
        try:
            return None if self._is_final else self._write(_words(error))
        finally:
            self._one_at_a_time.release()

    def _write(self, why: str) -> np.ndarray | None:
        if self.path is None:
            return None
        self._is_left = True
        drained: list[np.ndarray] = []
        thread = threading.Thread(
            target=self._run, args=(self.path, why, drained), name="overlap-recompute-flight", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as refused:
            logger.warning("the last marks of this rank are not written (%s)", refused)
            return None
        thread.join(MOST_S)
        if thread.is_alive():
            logger.warning("%s is not written after %g s; the run does not wait for it", self.path, MOST_S)
        return drained[0] if drained else None

    def _run(self, path: Path, why: str, drained: list[np.ndarray]) -> None:
        try:
            marks = self._marks.ring.drain()
            drained.append(marks)
            unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(self._text(marks[-LAST_MARKS:], why), encoding="utf-8")
            os.replace(unfinished, path)
        except Exception as error:
            logger.warning("the last marks of this rank are not in %s (%s: %s)", path, type(error).__name__, error)
        else:
            logger.warning("the last marks of this rank are in %s", path)

    def _text(self, marks: np.ndarray, why: str) -> str:
        """One event a line, as in other traces."""
        settings, now_ns = self._settings, time.monotonic_ns()
        to_wall_ns, reader = time.time_ns() - now_ns, SpanReader(self._marks)
        spans = [*reader.read(marks), *reader.unfinished(now_ns)]
        label = f"rank {settings.rank} (stage {settings.stage})"
        about: dict[str, Any] = {
            "error": why,
            "marks": len(marks),
            "overwritten": self._marks.ring.overwritten,
            "taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        events = [
            *header_of(settings.rank, label, settings.trace_origin),
            {"ph": "M", "name": FLIGHT_EVENT, "pid": settings.rank, "args": about},
            *(span_event(settings.rank, span, to_wall_ns) for span in spans),
        ]
        return "[\n" + ",\n".join(json.dumps(event, separators=(",", ":")) for event in events) + "\n]\n"


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:_MOST_CHARACTERS]
    except Exception:  # an error that cannot be told must not hide behind another one
        return type(error).__name__
