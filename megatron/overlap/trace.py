"""The trace of one rank, in the format that Perfetto and chrome://tracing open.

Four lanes: `schedule` has forward and backward passes under the names of their actions (`0F3`: chunk 0, microbatch 3),
`windows` the waits by kind, `hidden` and `exposed` the recomputed units (`R(L7.linear_fc1) 0.3`). Times are those of
the host; on a GPU a recompute is as long as its launch. A metadata event says which plan or policy the run carried out.
"""

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from megatron.overlap.window_log import Window
from overlap_recompute.plan.run_trace import LANES, RUN_EVENT, TraceOrigin
from overlap_recompute.runtime import Journal
from overlap_recompute.runtime import Kind as JournalKind

logger = logging.getLogger(__name__)

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
        # The host's clock of this process and that of the world, read together: so that ranks can be joined.
        self._to_wall_ns = time.time_ns() - time.perf_counter_ns()
        self._separator = "[\n"
        self._add({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": label}})
        if origin is not None:
            self._add({"ph": "M", "name": RUN_EVENT, "pid": rank, "args": dataclasses.asdict(origin)})
        for number, lane in enumerate(LANES):
            place = {"ph": "M", "pid": rank, "tid": number}
            self._add({**place, "name": "thread_name", "args": {"name": lane}})
            self._add({**place, "name": "thread_sort_index", "args": {"sort_index": number}})

    def span(self, lane: str, name: str, begin_ns: int, end_ns: int, **details: Any) -> None:
        """A span from one `time.perf_counter_ns()` to another."""
        if self._left <= 0:
            return
        self._left -= 1
        if self._left == 0:
            logger.warning("the trace %s ends here: it has %d spans", self.path, MOST_SPANS)
        self._add(
            {
                "ph": "X", "name": name, "pid": self._rank, "tid": LANES.index(lane),
                "ts": (begin_ns + self._to_wall_ns) / 1000, "dur": (end_ns - begin_ns) / 1000, "args": details,
            }
        )  # fmt: skip

    def window(self, window: Window) -> None:
        """A wait."""
        if self._left > 0:
            details = {"units": window.units, "filled_us": window.filled_ns / 1000}
            self.span("windows", window.kind.value, window.begin_ns, window.end_ns, **details)

    def replays(self, journal: Journal) -> None:
        """The replays that a journal holds, which is then emptied."""
        begun: dict[tuple[str, int, Hashable, int], int] = {}
        for event in journal.of(JournalKind.REPLAY_BEGIN, JournalKind.REPLAY_END):
            place = (event.unit, event.layer, event.microbatch, event.call)
            if event.kind is JournalKind.REPLAY_BEGIN:
                begun[place] = event.time_ns
            else:
                name = f"R({unit_name(event.unit, event.layer)}) {short_name(event.microbatch)}"
                self.span("hidden" if event.hidden else "exposed", name, begun.pop(place), event.time_ns)
        journal.clear()

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


def unit_name(unit: str, layer: int) -> str:
    """A unit in traces: `L7.linear_fc1`."""
    return f"L{layer}.{unit}"


def short_name(key: Hashable) -> str:
    """Chunk and microbatch in traces: `0.3`."""
    chunk, number = getattr(key, "chunk", None), getattr(key, "number", None)
    return f"{chunk}.{number}" if chunk is not None else str(key)
