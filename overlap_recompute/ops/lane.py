"""The lane: where recompute runs ahead of need, beside the compute stream.

    compute: | forward .. | all_reduce wait ....... |   fence.wait  | backward of L7 |
    lane:                 | open_window  R(L7.fc1) R(L7.activation) |

Rules of ownership: csrc/lane/lane.h, NOTE [ what a fence owns ].
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from overlap_recompute.ops.backend import current_stream, make_backend
from overlap_recompute.ops.fallback_lane import FallbackLane
from overlap_recompute.ops.native import extension
from overlap_recompute.ops.stream_lane import TorchStreamLane
from overlap_recompute.ops.stream_marks import StreamMarks
from overlap_recompute.ops.streams import CudaStreams, Streams
from overlap_recompute.plan.errors import UserError


class Fence(Protocol):
    """What a launch returns: an event behind the work, and all that the work still reads."""

    def wait(self, consumer: Any, keep: bool = False) -> None:
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


class Lane:
    """A side stream of the lowest priority on a CUDA device; on the CPU the calling thread, or a worker thread.

    The extension's, where it has a part for the device; else the same on torch's streams, or in Python.

    Args:
        device: "cuda:N" or "cpu".
        threaded: CPU only: run launches on a worker thread. torch's CPU generator is shared by all threads, so work
            that draws random numbers belongs on the calling thread (the default).
        marks: where begin and end of launches are marked in the lane's own time, and windows in the host's.
        streams: in place of the device's own, for tests.

    Not safe to copy; `close` it, or let it go: on the CPU what it launched is waited for; a CUDA stream, which may
    wait for a peer that is gone, is not. Streams of a CUDA device are used again by later lanes.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        threaded: bool = False,
        marks: StreamMarks | None = None,
        streams: Streams | None = None,
    ) -> None:
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"a lane on device {device}", "cpu or cuda", "run on one of them")
        on_cuda = device.type == "cuda"
        backend = None if streams is not None else make_backend(device) if marks is None else marks.backend
        self.device, self.marks = device, marks
        self._streams = CudaStreams(device) if on_cuda and streams is None else streams
        self._core: Any
        if backend is not None:
            assert extension is not None
            core = None if marks is None else marks.core
            self._core = extension.Lane(backend, own_stream=threaded or on_cuda, high_priority=False, marks=core)
        elif self._streams is not None:
            self._core = TorchStreamLane(self._streams, high_priority=False)
        else:
            self._core = FallbackLane(own_stream=threaded)
        self._finalizer = None if on_cuda else weakref.finalize(self, self._core.close)

    @property
    def stream(self) -> Any:
        """Handle of the lane's stream; 0 on the calling thread."""
        return self._core.stream

    def current(self) -> Any:
        """Handle of the stream that operations of this thread go to."""
        return current_stream(self.device) if self._streams is None else self._streams.current()

    def open_window(self, name: int = 0, compute: Any = None) -> None:
        """Later launches wait for what the compute stream (default: torch's current one) has been given so far."""
        self._core.open_window(self.current() if compute is None else compute, name)

    def follow(self, stream: Any) -> None:
        """Later launches wait for what another stream has been given so far, too."""
        self._core.follow(stream)

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
        streams, stream = self._streams, self._core.stream

        def task() -> None:
            with contextlib.nullcontext() if streams is None else streams.use(stream):
                kept.append(work())

        fence: Fence = self._core.launch(task, kept, name, value)
        return fence

    def collect(self) -> int:
        """Lets go of what streams have passed by now; returns how many guards. Other calls do this too."""
        return int(self._core.collect())

    def counts(self) -> LaneCounts:
        """Counters: a run is clean when windows' launches were all waited for and nothing is alive at its end."""
        counts: LaneCounts = self._core.counts()
        return counts

    def close(self) -> None:
        """Waits for everything launched and frees stream and events; an exception nobody has seen surfaces here."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._core.close()

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, *failure: object) -> None:
        with contextlib.suppress(Exception) if failure[0] is not None else contextlib.nullcontext():
            self.close()
