"""The trace of one rank, in the format that Perfetto and chrome://tracing open.

Four lanes: `schedule` has forward and backward passes under the names of their actions (`0F3`: chunk 0, microbatch 3),
`windows` the waits by kind, `hidden` and `exposed` the recomputed units (`R(L7.linear_fc1) 0.3`). Times are those of
the host; on a GPU those of its streams (`device_lane.py`). A metadata event says which plan or policy the run carried
out.
"""

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron.overlap.spans import Span
from overlap_recompute.plan.run_trace import LANES, RUN_EVENT, TraceOrigin

logger = logging.getLogger(__name__)

LOST_EVENT = "overlap_recompute_lost"
"""Name of the metadata event that says how many marks were overwritten; the last one counts."""
MOST_SPANS = 1_000_000
"""A trace ends there: larger ones open nowhere, and a long run would fill the disk."""


class TraceWriter:
    """Writes spans as they come; the file gets its name when it is complete. A write that fails ends the trace only."""

    def __init__(self, folder: Path, rank: int, label: str, origin: TraceOrigin | None = None) -> None:
        """Args:
        folder: made if it is not there.
        rank: of the whole job; the process number in the trace, and the name of the file.
        label: what to call the rank.
        origin: what to say about the run.

        Raises:
            OSError: the folder cannot be made or written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"rank-{rank:05d}.json"
        self._unfinished = folder / f".rank-{rank:05d}.json.{os.getpid()}.part"
        self._stream = open(self._unfinished, "w", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._rank, self._left = rank, MOST_SPANS
        # The clock of the marks and that of the world, read together: so that ranks can be joined.
        self._to_wall_ns = time.time_ns() - time.monotonic_ns()
        self._separator = "[\n"
        for event in header_of(rank, label, origin):
            self._add(event)

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more: it is complete, or has ended early."""
        return self._stream.closed

    def span(self, lane: str, name: str, begin_ns: int, end_ns: int, **details: Any) -> None:
        """A span from one `time.monotonic_ns()` to another."""
        self.spans((Span(lane, name, begin_ns, end_ns, details),))

    def spans(self, spans: Iterable[Span]) -> None:
        """Spans, in any order."""
        for span in spans:
            if self._left <= 0:
                continue
            self._left -= 1
            if self._left == 0:
                logger.warning("the trace %s ends here: it has %d spans", self.path, MOST_SPANS)
            self._add(span_event(self._rank, span, self._to_wall_ns))

    def say_lost(self, marks: int) -> None:
        """So many marks were overwritten before they could be written."""
        if not self.closed:
            self._add({"ph": "M", "name": LOST_EVENT, "pid": self._rank, "args": {"overwritten": marks}})

    def close(self) -> None:
        """Complete the file."""
        if self._stream.closed:
            return
        try:
            self._stream.write("\n]\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            os.replace(self._unfinished, self.path)
        except OSError as error:
            self._give_up(error)

    def _add(self, event: dict[str, Any]) -> None:
        try:
            self._stream.write(self._separator + json.dumps(event, separators=(",", ":")))
        except OSError as error:
            self._give_up(error)
        self._separator = ",\n"

    def _give_up(self, error: OSError) -> None:
        """What is there already stays: a viewer reads it without its end."""
        logger.warning("the trace %s ends early (%s); training goes on", self.path, error)
        self._left = 0
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            os.replace(self._unfinished, self.path)


def header_of(rank: int, label: str, origin: TraceOrigin | None) -> list[dict[str, Any]]:
    """The metadata events at the top of a trace.

    Args:
        rank: the process number in the trace.
        label: what to call the rank.
        origin: what to say about the run; None: nothing.
    """
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": rank, "args": {"name": label}}]
    if origin is not None:
        events.append({"ph": "M", "name": RUN_EVENT, "pid": rank, "args": dataclasses.asdict(origin)})
    for number, lane in enumerate(LANES):
        place = {"ph": "M", "pid": rank, "tid": number}
        events.append({**place, "name": "thread_name", "args": {"name": lane}})
        events.append({**place, "name": "thread_sort_index", "args": {"sort_index": number}})
    return events


def span_event(rank: int, span: Span, to_wall_ns: int) -> dict[str, Any]:
    """A span as an event; `to_wall_ns` is what the world's clock is ahead of `time.monotonic_ns()`."""
    return {
        "ph": "X", "name": span.name, "pid": rank, "tid": LANES.index(span.lane),
        "ts": (span.begin_ns + to_wall_ns) / 1000, "dur": (span.end_ns - span.begin_ns) / 1000, "args": span.details,
    }  # fmt: skip
