"""Where hidden replays run: inline on the calling thread, or on a side stream (docs/runtime.md, R11)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor


class Fence(Protocol):
    """Guards what a lane computed."""

    def wait(self) -> bool:
        """Make the current stream wait for the lane; True when nobody needs to wait any more."""
        ...


class Lane(Protocol):
    """Runs the replays of a fill."""

    def open(self) -> None:
        """Called once at the start of each fill that has something to do."""
        ...

    def run(self, replay: Callable[[], Sequence[Tensor]]) -> Fence | None:
        """Run `replay`, which returns the tensors that it reads; None when its results are ready on return."""
        ...


class InlineLane:
    """Replays on the calling thread and its current stream: the lane for CPUs, and for runs without overlap.

    comp: | launch all_reduce  R(L7.fc1) R(L7.act) wait | L8...
    comm: |            all_reduce ................      |
    """

    def open(self) -> None:
        """Nothing to prepare."""

    def run(self, replay: Callable[[], Sequence[Tensor]]) -> None:
        """Run it."""
        replay()


class StreamEvent(Protocol):
    """A mark on a stream."""

    def record(self, stream: Any) -> None:
        """Set the mark at the end of what `stream` was given so far."""
        ...


class Streams(Protocol):
    """Streams and events of a device; `CudaStreams`, or a recording stand-in in tests."""

    def current(self) -> Any:
        """The stream that operations of this thread go to."""
        ...

    def side(self) -> Any:
        """A new stream of the lowest priority."""
        ...

    def event(self) -> StreamEvent:
        """A new event, without timing."""
        ...

    def wait(self, stream: Any, event: StreamEvent) -> None:
        """Make `stream` wait for `event`; does not block the host."""
        ...

    def use(self, stream: Any) -> AbstractContextManager[Any]:
        """Make `stream` the current one."""
        ...


class CudaStreams:
    """The streams of one CUDA device."""

    __slots__ = ("_device",)

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def current(self) -> torch.cuda.Stream:
        """The current stream of the device."""
        return torch.cuda.current_stream(self._device)

    def side(self) -> torch.cuda.Stream:
        """A stream of priority 0, the lowest there is, which is also the default stream's."""
        return torch.cuda.Stream(self._device, priority=0)

    def event(self) -> torch.cuda.Event:
        """An event that only orders streams."""
        return torch.cuda.Event()

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        """`stream` waits for `event`."""
        stream.wait_event(event)

    def use(self, stream: torch.cuda.Stream) -> AbstractContextManager[Any]:
        """Operations go to `stream`."""
        return torch.cuda.stream(stream)


class StreamFence:
    """An event on the lane, and every tensor of the compute stream that the lane still reads before it.

    The tensors may be released, and their memory used again by the compute stream, only after that stream has waited.
    """

    __slots__ = ("_lane", "_event", "_origin", "_reads")

    def __init__(self, lane: "StreamLane", event: StreamEvent, origin: Any, reads: Sequence[Tensor]) -> None:
        self._lane, self._event, self._origin, self._reads = lane, event, origin, reads

    def wait(self) -> bool:
        """Make the current stream wait; True on the compute stream, which is the one that gets the memory back."""
        current = self._lane.streams.current()
        self._lane.streams.wait(current, self._event)
        if current != self._origin:
            return False
        self._release()
        return True

    def wait_for_origin(self) -> None:
        """Make the compute stream wait, whichever stream is the current one."""
        self._lane.streams.wait(self._origin, self._event)
        self._release()

    def _release(self) -> None:
        self._reads = ()
        self._lane.recycle(self._event)
        self._lane = None  # type: ignore[assignment]

    def __del__(self) -> None:
        """A result that nobody used: the compute stream waits all the same before it gets the memory back."""
        if self._lane is not None:
            self.wait_for_origin()


class StreamLane:
    """Replays on a side stream of low priority while the compute stream waits for communication.

    comp: | launch all_reduce, E1 ............. wait | L8...   wait(fence of L7.act) L7.fc2_bwd
    comm: |    all_reduce ..................... |
    lane: |    wait(E1) R(L7.fc1) fence R(L7.act) fence
    """

    __slots__ = ("streams", "_side", "_origin", "_events")

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self._side: Any = None
        self._origin: Any = None
        self._events: list[StreamEvent] = []

    def open(self) -> None:
        """The lane waits for all that the compute stream was given so far.

        That covers the arguments of the replays, and the last readers of memory that the lane made earlier and that
        has been released since: it may be used again from here on.
        """
        if self._side is None:
            self._side = self.streams.side()
        self._origin = self.streams.current()
        event = self._take_event()
        event.record(self._origin)
        self.streams.wait(self._side, event)
        self._events.append(event)

    def run(self, replay: Callable[[], Sequence[Tensor]]) -> StreamFence:
        """Launch it on the side stream; its own fence follows."""
        try:
            with self.streams.use(self._side):
                reads = replay()
        except BaseException:
            # What the replay had read may be released now, while the lane still reads it.
            self._fence(()).wait_for_origin()
            raise
        return self._fence(reads)

    def _fence(self, reads: Sequence[Tensor]) -> StreamFence:
        event = self._take_event()
        event.record(self._side)
        return StreamFence(self, event, self._origin, reads)

    def recycle(self, event: StreamEvent) -> None:
        """An event that every stream has been told to wait for may be recorded again."""
        self._events.append(event)

    def _take_event(self) -> StreamEvent:
        return self._events.pop() if self._events else self.streams.event()
