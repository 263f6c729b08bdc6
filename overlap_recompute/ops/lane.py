"""The lane: where recompute runs ahead of need, beside the compute stream.

    compute: | forward .. | all_reduce wait ....... |   fence.wait  | backward of L7 |
    lane:                 | open_window  R(L7.fc1) R(L7.activation) |

Rules of ownership: csrc/lane/lane.h, NOTE [ what a fence owns ].
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch

from overlap_recompute.ops.fallback_lane import FallbackLane
from overlap_recompute.ops.marks import MARK, EventRing
from overlap_recompute.ops.native import extension, has_cuda
from overlap_recompute.plan.errors import UserError

STREAM_MARKS_CAPACITY = 1 << 16


class Fence(Protocol):
    """What a launch returns: an event behind the work, and all that the work still reads."""

    def wait(self, consumer: int, keep: bool = False) -> None:
        """Makes the stream `consumer` wait for the work, and lets go of what is guarded.

        On CUDA the host does not block. On the CPU consumer 0, the calling thread, does; an exception of the work is
        raised here. `keep` leaves the fence armed for another consumer. A second wait is a RuntimeError.
        """

    def host_wait(self) -> None:
        """Blocks the calling thread until the work is done; the fence stays armed."""

    def passed(self) -> bool:
        """Whether the work is done; does not block."""


class LaneCounts(Protocol):
    """Counters since the lane was made, and what is alive now."""

    windows: int
    launched: int
    waited: int
    abandoned: int
    open_fences: int
    guards_held: int
    events_alive: int
    events_in_use: int


def current_stream(device: torch.device) -> int:
    """Handle of torch's current stream on a CUDA device; 0, the calling thread, on the CPU."""
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def make_backend(device: torch.device) -> Any:
    """The extension's streams and events for a device; None where the extension lacks them."""
    if extension is None or (device.type == "cuda" and not has_cuda):
        return None
    return extension.Backend.cuda(device.index or 0) if device.type == "cuda" else extension.Backend.cpu()


class Lane:
    """A side stream of the lowest priority on a CUDA device; on the CPU the calling thread, or a worker thread.

    Args:
        device: "cuda:N" or "cpu".
        threaded: CPU only: run launches on a worker thread. torch's CPU generator is shared by all threads, so work
            that draws random numbers belongs on the calling thread (the default).
        ring: event ring for the marks of windows; launches are marked in the lane's own time (`drain_marks`).

    Not safe to copy; `close` it, or let it go: what it launched is waited for.
    """

    def __init__(self, device: torch.device, *, threaded: bool = False, ring: EventRing | None = None) -> None:
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"a lane on device {device}", "cpu or cuda", "run on one of them")
        own_stream = threaded or device.type == "cuda"
        backend = make_backend(device)
        self.device = device
        self._marks: Any = None
        self._core: Any
        if backend is None:
            self._core = FallbackLane(device, own_stream=own_stream, high_priority=False)
        else:
            assert extension is not None
            if ring is not None:
                anchor = current_stream(device)
                self._marks = extension.StreamMarks(ring, backend, anchor, STREAM_MARKS_CAPACITY)
            self._core = extension.Lane(backend, own_stream=own_stream, high_priority=False, marks=self._marks)
        cuda = device.type == "cuda"
        self._torch_stream = torch.cuda.ExternalStream(self._core.stream, device=device) if cuda else None
        self._finalizer = weakref.finalize(self, self._core.close)

    @property
    def stream(self) -> int:
        """Handle of the lane's stream; 0 on the calling thread."""
        return int(self._core.stream)

    def open_window(self, name: int = 0, compute: int | None = None) -> None:
        """Later launches wait for what the compute stream (default: torch's current one) has been given so far."""
        self._core.open_window(current_stream(self.device) if compute is None else compute, name)

    def close_window(self, name: int = 0) -> None:
        """Marks the end of a window; launches go on being legal."""
        self._core.close_window(name)

    def launch(
        self, work: Callable[[], object], guarded: Iterable[object] = (), *, name: int = 0, value: int = 0
    ) -> Fence:
        """Runs `work` on the lane: on CUDA now, with the lane as torch's current stream.

        Args:
            work: takes nothing; what it returns is guarded, too.
            guarded: kept alive until a consumer has waited for the fence: every tensor the lane reads or writes.
            name, value: of the marks (`EventRing.intern`).

        Raises:
            Whatever `work` raises, where it runs now; on a worker thread the fence's wait raises it.
        """
        kept: list[object] = list(guarded)
        stream = self._torch_stream

        def task() -> None:
            with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
                kept.append(work())

        fence: Fence = self._core.launch(task, kept, name, value)
        return fence

    def drain_marks(self) -> np.ndarray:
        """Marks of launches that are done, in the lane's time on the host's clock: [n] of `MARK`."""
        if self._marks is None:
            return np.empty(0, dtype=MARK)
        marks: np.ndarray = self._marks.drain()
        return marks

    def collect(self) -> int:
        """Lets go of what streams have passed by now; returns how many guards. Other calls do this too."""
        return int(self._core.collect())

    def counts(self) -> LaneCounts:
        """Counters: a run is clean when windows' launches were all waited for and nothing is alive at its end."""
        counts: LaneCounts = self._core.counts()
        return counts

    def close(self) -> None:
        """Waits for everything launched and frees stream and events; an exception nobody has seen surfaces here."""
        self._finalizer.detach()
        self._core.close()

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, *failure: object) -> None:
        with contextlib.suppress(Exception) if failure[0] is not None else contextlib.nullcontext():
            self.close()
