"""The lane's core on the CPU where there is no extension: the calling thread, or a worker thread.

Same methods and rules as csrc/lane/lane.h (NOTE [ what a fence owns ]), without marks in stream time.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class FallbackCounts:
    """Live counters of one lane; the extension's LaneCounts has the same fields."""

    windows: int = 0
    launched: int = 0
    waited: int = 0
    abandoned: int = 0
    open_fences: int = 0
    guards_held: int = 0
    events_alive: int = 0
    events_in_use: int = 0


def second_wait() -> RuntimeError:
    """For a fence that was waited for."""
    return RuntimeError("found a fence that was already waited for; expected one wait per fence")


def closed_lane() -> RuntimeError:
    """For a launch behind `close`."""
    return RuntimeError("found a launch on a closed lane; expected an open one")


class FallbackFence:
    """Owns what the lane still reads, until a consumer has waited."""

    def __init__(self, lane: "FallbackLane", done: "Future[None]", guard: object) -> None:
        self._lane, self._done, self._guard, self._armed = lane, done, guard, True

    def wait(self, consumer: int, keep: bool = False) -> None:
        """Blocks: the only consumer is handle 0, the calling thread."""
        if not self._armed:
            raise second_wait()
        self._done.exception()
        if keep:
            return
        self._armed, self._guard = False, None
        self._lane.counters.waited += 1
        self._lane.counters.open_fences -= 1
        self._done.result()

    def host_wait(self) -> None:
        """Blocks until the work is done."""
        self._done.result()

    def passed(self) -> bool:
        """Whether the work is done."""
        return self._done.done()

    def __del__(self) -> None:
        if self._armed:
            self._lane.counters.abandoned += 1
            self._lane.counters.open_fences -= 1
            self._lane.retired.append((self._done, self._guard))


class FallbackLane:
    """A worker thread, or the calling thread."""

    stream = 0

    def __init__(self, *, own_stream: bool) -> None:
        self.counters = FallbackCounts()
        self.retired: deque[tuple[Future[None], object]] = deque()
        """What nobody waited for, with its guard, until it is done."""
        self._closed = False
        self._worker = ThreadPoolExecutor(1) if own_stream else None
        self._free_at_ns = 0

    def follow(self, compute: int) -> None:
        """Nothing to do: what the calling thread was given is done."""

    def open_window(self, compute: int, name: int) -> None:
        self.collect()
        self.counters.windows += 1

    def close_window(self, name: int) -> None:
        """Nothing to do: marks need the extension."""

    def launch(self, work: Callable[[], object], guard: object, name: int, value: int) -> FallbackFence:
        if self._closed:
            raise closed_lane()
        self.collect()
        if self._worker is not None:
            done = self._worker.submit(lambda: (work(), None)[1])
        else:
            work()
            done = Future()
            done.set_result(None)
        self.counters.launched += 1
        self.counters.open_fences += 1
        return FallbackFence(self, done, guard)

    def launch_wait(self, latency_ns: int, duration_ns: int, guard: object) -> FallbackFence:
        """An emulated transfer on the worker thread: sleeps, copies nothing."""
        self._free_at_ns = max(time.monotonic_ns(), self._free_at_ns) + duration_ns
        deadline_ns = self._free_at_ns + latency_ns
        sleeper = threading.Event()
        return self.launch(lambda: sleeper.wait(max(0, deadline_ns - time.monotonic_ns()) * 1e-9), guard, 0, 0)

    def collect(self) -> int:
        """Forgets abandoned work that is done; an exception of it surfaces here."""
        entries, self.retired = list(self.retired), deque()
        finished = [done for done, _ in entries if done.done()]
        self.retired.extend(entry for entry in entries if entry[0] not in finished)
        for done in finished:
            done.result()
        return len(finished)

    def close(self) -> None:
        self._closed = True
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        self.collect()

    def counts(self) -> FallbackCounts:
        self.counters.guards_held = self.counters.open_fences + len(self.retired)
        return self.counters
