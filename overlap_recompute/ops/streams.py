"""Streams and events of torch behind plain handles, for the lane where the extension has no CUDA part."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch


class StreamEvent(Protocol):
    """A mark on a stream."""

    def query(self) -> bool:
        """Whether the stream has passed it."""


class Streams(Protocol):
    """Streams and events of a device; `CudaStreams`, or a recording stand-in in tests.

    A handle is what torch calls `Stream.cuda_stream`.
    """

    def current(self) -> Any:
        """Handle of the stream that operations of this thread go to."""

    def create(self, *, high_priority: bool) -> Any:
        """A new stream of the highest or the lowest priority, alive as long as this object; its handle."""

    def event(self) -> StreamEvent:
        """A new event, without timing."""

    def record(self, event: Any, stream: Any) -> None:
        """Set the event at the end of what the stream was given so far."""

    def wait(self, stream: Any, event: Any) -> None:
        """Make the stream wait for the event; does not block the host."""

    def use(self, stream: Any) -> AbstractContextManager[Any]:
        """Make the stream the current one."""

    def finish(self, stream: Any) -> None:
        """Block until the stream has done what it was given."""


class CudaStreams:
    """The streams of one CUDA device."""

    __slots__ = ("_device", "_known")

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[int, torch.cuda.Stream] = {}

    def current(self) -> int:
        """The current stream of the device."""
        return int(torch.cuda.current_stream(self._device).cuda_stream)

    def create(self, *, high_priority: bool) -> int:
        """Priority 0 is the lowest there is, and the default stream's."""
        stream = torch.cuda.Stream(self._device, priority=-1 if high_priority else 0)
        self._known[int(stream.cuda_stream)] = stream
        return int(stream.cuda_stream)

    def event(self) -> torch.cuda.Event:
        """An event that only orders streams."""
        return torch.cuda.Event()

    def record(self, event: torch.cuda.Event, stream: int) -> None:
        """At the end of the stream."""
        event.record(self._of(stream))

    def wait(self, stream: int, event: torch.cuda.Event) -> None:
        """`stream` waits for `event`."""
        self._of(stream).wait_event(event)

    def use(self, stream: int) -> AbstractContextManager[Any]:
        """Operations go to `stream`."""
        return torch.cuda.stream(self._of(stream))

    def finish(self, stream: int) -> None:
        """Synchronize with it."""
        self._of(stream).synchronize()

    def _of(self, handle: int) -> torch.cuda.Stream:
        known = self._known.get(handle)
        if known is None:
            # An `ExternalStream` of handle 0 would be a stream of torch's pool.
            is_default = handle == 0
            known = (
                torch.cuda.default_stream(self._device)
                if is_default
                else torch.cuda.ExternalStream(handle, device=self._device)
            )
            self._known[handle] = known
        return known
