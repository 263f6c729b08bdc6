"""The lane's core on torch's streams, for CUDA devices where the extension has no CUDA part.

Same methods and rules as csrc/lane/lane.h (NOTE [ what a fence owns ]), without marks in stream time.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from overlap_recompute.ops.fallback_lane import FallbackCounts, closed_lane, second_wait
from overlap_recompute.ops.streams import StreamEvent, Streams


class StreamFence:
    """An event behind a launch, and what the launch still reads, until a consumer has waited."""

    __slots__ = ("_lane", "_event", "_guard")

    def __init__(self, lane: "TorchStreamLane", event: StreamEvent, guard: object) -> None:
        self._lane, self._guard = lane, guard
        self._event: StreamEvent | None = event

    def wait(self, consumer: Any, keep: bool = False) -> None:
        """Make the consumer stream wait; the guard is dropped at once, since memory is reused in stream order."""
        if self._event is None:
            raise second_wait()
        self._lane.streams.wait(consumer, self._event)
        if keep:
            return
        event, self._event, self._guard = self._event, None, None
        self._lane.settle(event)

    def host_wait(self) -> None:
        """Block until the lane has done all it was given so far, this launch with it."""
        if self._event is None:
            raise second_wait()
        self._lane.streams.finish(self._lane.stream)

    def passed(self) -> bool:
        """Whether the launch is done."""
        return self._event is None or self._event.query()

    def __del__(self) -> None:
        if self._event is not None:
            self._lane.retire(self._event, self._guard)


class TorchStreamLane:
    """A side stream, its fences, and events that are used again."""

    def __init__(self, streams: Streams, *, high_priority: bool) -> None:
        self.streams, self.stream = streams, streams.create(high_priority=high_priority)
        self.counters = FallbackCounts()
        self._events: list[StreamEvent] = []
        self._retired: deque[tuple[StreamEvent, object]] = deque()
        self._closed = False

    def follow(self, compute: Any) -> None:
        """Later launches wait for what `compute` has been given so far."""
        event = self._take()
        self.streams.record(event, compute)
        self.streams.wait(self.stream, event)
        # A wait that has been enqueued stays right when the event is recorded again.
        self._give(event)

    def open_window(self, compute: Any, name: int) -> None:
        """The same, counted."""
        self.collect()
        self.follow(compute)
        self.counters.windows += 1

    def close_window(self, name: int) -> None:
        """Nothing to do: marks need the extension."""

    def launch(self, work: Callable[[], object], guard: object, name: int, value: int) -> StreamFence:
        """Run `work`, which launches on the stream; its fence."""
        if self._closed:
            raise closed_lane()
        self.collect()
        self.counters.launched += 1
        self.counters.open_fences += 1
        try:
            work()
        except BaseException:
            # What it did launch may still read the guard.
            self.retire(self._recorded(), guard)
            raise
        return StreamFence(self, self._recorded(), guard)

    def settle(self, event: StreamEvent) -> None:
        """A fence was waited for."""
        self.counters.waited += 1
        self.counters.open_fences -= 1
        self._give(event)

    def retire(self, event: StreamEvent, guard: object) -> None:
        """A fence was dropped without a wait: its guard lives until the lane has passed."""
        self.counters.abandoned += 1
        self.counters.open_fences -= 1
        self._retired.append((event, guard))

    def collect(self) -> int:
        """Let go of what the lane has passed, in its order."""
        found = 0
        while self._retired and self._retired[0][0].query():
            event, _ = self._retired.popleft()
            self._give(event)
            found += 1
        return found

    def close(self) -> None:
        """Wait for everything launched."""
        self._closed = True
        self.streams.finish(self.stream)
        self.collect()

    def counts(self) -> FallbackCounts:
        """Counters, and what is alive now."""
        self.counters.guards_held = self.counters.open_fences + len(self._retired)
        return self.counters

    def _recorded(self) -> StreamEvent:
        event = self._take()
        self.streams.record(event, self.stream)
        return event

    def _take(self) -> StreamEvent:
        self.counters.events_in_use += 1
        if self._events:
            return self._events.pop()
        self.counters.events_alive += 1
        return self.streams.event()

    def _give(self, event: StreamEvent) -> None:
        self.counters.events_in_use -= 1
        self._events.append(event)
