"""Where hidden replays run: inline on the calling thread, or on a side stream (docs/runtime.md, R11)."""

import threading
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from overlap_recompute.ops.lane import Fence as LaunchFence
from overlap_recompute.ops.lane import Lane as LaunchLane


class Fence(Protocol):
    """Guards what a lane computed."""

    def wait(self) -> bool:
        """Make the current stream wait for the lane; True when nobody needs to wait any more."""
        ...


class Lane(Protocol):
    """Runs the replays of a fill."""

    @property
    def marks_itself(self) -> bool:
        """Whether it marks begin and end of each replay, in its own time."""
        ...

    def open(self, home: Hashable | None = None) -> None:
        """Called once at the start of each fill that has something to do.

        `home`: the stream of the forward pass, if that is known.
        """
        ...

    def run(self, replay: Callable[[], object], name: int = 0, value: int = 0) -> Fence | None:
        """Run `replay`, which returns what holds the tensors that it reads; None when its results are ready on return.

        `name` and `value` are those of its marks.
        """
        ...


class InlineLane:
    """Replays on the calling thread and its current stream: the lane for CPUs, and for runs without overlap.

    comp: | launch all_reduce  R(L7.fc1) R(L7.act) wait | L8...
    comm: |            all_reduce ................      |
    """

    marks_itself = False

    def open(self, home: Hashable | None = None) -> None:
        """Nothing to prepare."""

    def run(self, replay: Callable[[], object], name: int = 0, value: int = 0) -> None:
        """Run it."""
        replay()


class StreamFence:
    """The fence of a launch, which owns every tensor of the compute stream that the lane still reads.

    The tensors may be released, and their memory used again by the compute stream, only after that stream has waited.
    Where nobody uses the results they stay until the lane has passed.
    """

    __slots__ = ("_lane", "_fence", "_origin", "_lock", "_readers")

    def __init__(
        self, lane: LaunchLane, fence: LaunchFence, origin: Any, lock: threading.RLock, readers: set[Hashable]
    ) -> None:
        """`readers`: where to note other streams than `origin` that have waited."""
        self._lane, self._origin, self._lock, self._readers = lane, origin, lock, readers
        self._fence: LaunchFence | None = fence

    def wait(self) -> bool:
        """Make the current stream wait; True on the compute stream, which is the one that gets the memory back.

        Backward threads of the CPU and of the device may both ask, and the extension's wait lets other threads run.
        """
        with self._lock:
            if self._fence is None:
                return True
            current = self._lane.current()
            if current != self._origin:
                self._fence.wait(current, keep=True)
                self._readers.add(current)
                return False
            self._fence.wait(current)
            self._fence = None
            return True


class StreamLane:
    """Replays on a side stream of low priority while the compute stream waits for communication.

    comp: | launch all_reduce, E1 ............. wait | L8...   wait(fence of L7.act) L7.fc2_bwd
    comm: |    all_reduce ..................... |
    lane: |    wait(E1) R(L7.fc1) fence R(L7.act) fence
    """

    __slots__ = ("_lane", "_origin", "_lock", "_readers")

    def __init__(self, lane: LaunchLane) -> None:
        """`lane`: stream, events and fences, the extension's where it has them (`overlap_recompute.ops`)."""
        self._lane, self._lock = lane, threading.RLock()
        self._readers: set[Hashable] = set()
        self._origin: Any = None

    @property
    def marks_itself(self) -> bool:
        """Whether the lane was made with marks."""
        return self._lane.marks is not None

    def open(self, home: Hashable | None = None) -> None:
        """The lane waits for all that the compute stream was given so far, and others on which results were read.

        That covers the arguments of the replays, and the last readers of memory that the lane made earlier and that
        has been released since: it may be used again from here on.
        """
        current = self._lane.current()
        self._origin = current if home is None else home
        self._lane.open_window(compute=current)
        for stream in {self._origin, *self._readers} - {current}:
            self._lane.follow(stream)

    def run(self, replay: Callable[[], object], name: int = 0, value: int = 0) -> StreamFence:
        """Launch it on the side stream; its own fence follows."""
        try:
            fence = self._lane.launch(replay, name=name, value=value)
        except BaseException:
            # What the replay had read may be released now, while the lane still reads it.
            self._lane.launch(tuple).wait(self._origin)
            raise
        return StreamFence(self._lane, fence, self._origin, self._lock, self._readers)
