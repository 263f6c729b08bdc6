"""The lane's core where there is no extension: torch streams and events, or the calling thread.

Same methods and rules as csrc/lane/lane.h (NOTE [ what a fence owns ]), without marks in stream time.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch


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


class FallbackFence:
    """Owns what the lane still reads, until a consumer has waited."""

    def __init__(self, lane: "FallbackLane", done: "Future[None] | torch.cuda.Event", guard: object) -> None:
        self._lane, self._done, self._guard, self._armed = lane, done, guard, True

    def wait(self, consumer: int, keep: bool = False) -> None:
        """Makes the consumer stream wait; handle 0 on the CPU is the calling thread."""
        if not self._armed:
            raise RuntimeError("found a fence that was already waited for; expected one wait per fence")
        if isinstance(self._done, Future):
            self._done.exception()
        else:
            torch.cuda.ExternalStream(consumer, device=self._lane.device).wait_event(self._done)
        if keep:
            return
        self._armed, self._guard = False, None
        self._lane.counters.waited += 1
        self._lane.counters.open_fences -= 1
        if isinstance(self._done, Future):
            self._done.result()

    def host_wait(self) -> None:
        """Blocks until the work is done."""
        self._done.result() if isinstance(self._done, Future) else self._done.synchronize()

    def passed(self) -> bool:
        """Whether the work is done."""
        return self._done.done() if isinstance(self._done, Future) else self._done.query()

    def __del__(self) -> None:
        if self._armed:
            self._lane.counters.abandoned += 1
            self._lane.counters.open_fences -= 1
            self._lane.retired.append(self._done)


class FallbackLane:
    """A side stream (CUDA), a worker thread, or the calling thread."""

    def __init__(self, device: torch.device, *, own_stream: bool, high_priority: bool) -> None:
        self.device = device
        self.counters = FallbackCounts()
        # What nobody waited for: closed lanes wait for it. (A torch event keeps no tensor, but the work's own do.)
        self.retired: deque[Future[None] | torch.cuda.Event] = deque()
        self._closed = False
        self._side = torch.cuda.Stream(device, priority=-1 if high_priority else 0) if device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1) if own_stream and self._side is None else None
        self._free_at_ns = 0

    @property
    def stream(self) -> int:
        return 0 if self._side is None else self._side.cuda_stream

    def follow(self, compute: int) -> None:
        if self._side is not None:
            self._side.wait_stream(torch.cuda.ExternalStream(compute, device=self.device))

    def open_window(self, compute: int, name: int) -> None:
        self.collect()
        self.follow(compute)
        self.counters.windows += 1

    def close_window(self, name: int) -> None:
        """Nothing to do: marks need the extension."""

    def launch(self, work: Callable[[], object], guard: object, name: int, value: int) -> FallbackFence:
        if self._closed:
            raise RuntimeError("found a launch on a closed lane; expected an open one")
        self.collect()
        done: Future[None] | torch.cuda.Event
        if self._side is not None:
            work()
            done = torch.cuda.Event()
            done.record(self._side)
        elif self._worker is not None:
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
        running = deque(
            done for done in self.retired if not (done.done() if isinstance(done, Future) else done.query())
        )
        finished = [done for done in self.retired if done not in running]
        self.retired = running
        for done in finished:
            if isinstance(done, Future):
                done.result()
        return len(finished)

    def close(self) -> None:
        self._closed = True
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        if self._side is not None:
            self._side.synchronize()
        self.collect()

    def counts(self) -> FallbackCounts:
        self.counters.guards_held = self.counters.open_fences + len(self.retired)
        return self.counters
