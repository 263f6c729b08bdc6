"""Marks in the time of a stream: when a device gets there, not when the host asked for it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from overlap_recompute.ops.backend import current_stream, make_backend
from overlap_recompute.ops.marks import event_ring
from overlap_recompute.ops.native import extension
from overlap_recompute.plan.errors import UserError

STREAM_MARKS_CAPACITY = 1 << 16


class StreamMarks:
    """An `EventRing` whose marks lie on the stream that is current where they are made.

    A mark records an event now, which becomes a time when `drain` finds that the stream has passed it
    (csrc/trace/stream_marks.h); it costs two event calls on CUDA. A lane that was made with these marks marks its
    launches on its own stream.

    Args:
        device: "cuda:N" or "cpu", where the calling thread is the only stream.
        capacity: marks that may wait for `drain`; further ones are dropped and counted.

    Raises:
        UserError: the extension is missing, or has no part for this device.
    """

    def __init__(self, device: torch.device, capacity: int = STREAM_MARKS_CAPACITY) -> None:
        self.backend: Any = make_backend(device)
        """Streams and events, for a lane on which to mark."""
        if self.backend is None:
            raise UserError(
                f"marks in the time of streams of {device}",
                "an extension that was built for it",
                "see `overlap-recompute doctor`",
            )
        assert extension is not None
        self.device, self.capacity = device, capacity
        self._ring: Any = event_ring()
        self.core: Any = extension.StreamMarks(self._ring, self.backend, current_stream(device), capacity)
        """What such a lane takes."""
        self._mark: Callable[[int, int, int, int], None] = self.core.mark
        self.intern: Callable[[str], int] = self._ring.intern

    def mark(self, name: int, kind: int, value: int = 0, /) -> None:
        """A mark at the end of what the current stream was given so far."""
        self._mark(current_stream(self.device), name, kind, value)

    def drain(self) -> np.ndarray:
        """The marks that their streams have passed, in the order of time: [n] of `MARK`; the others stay.

        Among them those of a lane's windows, which are the host's (`Lane.open_window`).
        """
        marks = np.concatenate([self._ring.drain(), self.core.drain()])
        return marks[np.argsort(marks["time_ns"], kind="stable")]

    @property
    def names(self) -> Sequence[str]:
        """Names by number."""
        names: Sequence[str] = self._ring.names
        return names

    @property
    def threads(self) -> Sequence[int]:
        """Operating-system thread number by `thread` of a mark."""
        threads: Sequence[int] = self._ring.threads
        return threads

    @property
    def overwritten(self) -> int:
        """Marks that were lost because too many waited."""
        return int(self.core.dropped) + int(self._ring.overwritten)
