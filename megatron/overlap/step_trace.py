"""The trace of a run, made of the marks of its steps."""

import logging
from pathlib import Path

import numpy as np

from megatron.overlap.settings import OverlapSettings
from megatron.overlap.spans import LaneTimes, SpanReader
from megatron.overlap.step_marks import StepMarks
from megatron.overlap.trace import TraceWriter
from overlap_recompute.plan.errors import ConfigError

logger = logging.getLogger(__name__)


class StepTrace:
    """Drains the ring of one rank after each step and writes what it held."""

    def __init__(self, settings: OverlapSettings, folder: Path, marks: StepMarks) -> None:
        """Args:
        settings: the place of this rank.
        folder: where the trace goes.
        marks: what the session marks, in a ring that nobody else drains.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            label = f"rank {settings.rank} (stage {settings.stage})"
            self._writer = TraceWriter(folder, settings.rank, label, settings.trace_origin)
        except OSError as error:
            raise ConfigError(
                f"--overlap-recompute-trace {folder}, which cannot be written ({error})",
                "a folder with permission to write",
                "name another folder",
            ) from None
        self._ring, self._reader = marks.ring, SpanReader(marks)
        self._waiting: list[np.ndarray] = []
        self._lost = 0

    def keep(self, drained: np.ndarray) -> None:
        """Marks that the flight recorder has drained; they are written with those of the next step, or at the end."""
        self._waiting.append(drained)

    def end_step(self) -> LaneTimes:
        """Write what was marked since the last call, and add it up.

        Marks that a stream has not passed yet come with those of the next step.
        """
        taken, self._waiting = [*self._waiting, self._ring.drain()], []
        times = LaneTimes()
        for drained in taken:
            spans = [*self._reader.read(drained)]
            times.add(spans)
            self._writer.spans(spans)
        if self._ring.overwritten > self._lost:
            self._tell_lost(self._ring.overwritten, first=not self._lost)
        return times

    def _tell_lost(self, lost: int, *, first: bool) -> None:
        if first:
            logger.warning(
                "a step makes more marks than the event ring holds (%d a thread): %d were overwritten, and their spans "
                "are not in the trace %s", self._ring.capacity, lost, self._writer.path,
            )  # fmt: skip
            self._writer.say_lost(lost)
        self._lost = lost

    def close(self) -> None:
        """Complete the file, also where the device has failed and tells no times any more."""
        try:
            if not self._writer.closed:
                self.end_step()
                if self._lost:
                    self._writer.say_lost(self._lost)
        except RuntimeError as error:
            logger.warning("the last marks of this rank are not in the trace %s (%s)", self._writer.path, error)
        self._writer.close()
