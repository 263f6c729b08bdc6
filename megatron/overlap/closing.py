"""When a window closes: what a fill asks before each unit.

NOTE [ polling a communication ]
1. gloo: `Work.is_completed()` tells the truth for all-reduce, all-gather and all-to-all. For reduce-scatter, send and
   receive it stays False until somebody waits: a thread waits in its place, and the window asks the thread. `wait()`
   releases the interpreter while it blocks.
2. NCCL: the host runs ahead of the device, so that a poll says nothing about the moment when the device gets there. A
   window then takes a fixed number of units; what outlives the communication goes on beside compute, on its own stream.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol


class Watch(Protocol):
    """A window that is open."""

    def is_over(self) -> bool:
        """Whether no further unit should be started."""
        ...

    def wait(self) -> None:
        """Wait for the communication, as the caller of the collective would have done."""
        ...


class Closing(Protocol):
    """Opens watches; one per process."""

    def watch(self, work: Any, pollable: bool) -> Watch:
        """Watch a communication that has been launched."""
        ...

    def close(self) -> None:
        """Nothing will be watched any more."""
        ...


class _Polled:
    """Asks the communication itself."""

    __slots__ = ("is_over", "_work")

    def __init__(self, work: Any) -> None:
        self.is_over, self._work = work.is_completed, work

    def wait(self) -> None:
        """Wait for it."""
        self._work.wait()


class _Delegated:
    """Asks the thread that waits."""

    __slots__ = ("is_over", "_done", "_errors")

    def __init__(self, waiter: "Waiter", wait: Callable[[], Any]) -> None:
        self._done = threading.Event()
        self._errors: list[BaseException] = []
        self.is_over = self._done.is_set
        waiter.take(self._run, wait)

    def _run(self, wait: Callable[[], Any]) -> None:
        try:
            wait()
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._done.set()

    def wait(self) -> None:
        """Wait for the thread; what it ran into is raised here."""
        self._done.wait()
        if self._errors:
            raise self._errors.pop()


class Waiter:
    """One thread that waits for one communication after the other; started at the first."""

    __slots__ = ("_jobs", "_thread")

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[..., None], Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def take(self, job: Callable[[Any], None], argument: Any) -> None:
        """Run a job as soon as those before it have ended."""
        if self._thread is None:
            # A daemon: when a peer is lost its wait may never end, and the process must.
            self._thread = threading.Thread(target=self._run, name="overlap-recompute-waiter", daemon=True)
            self._thread.start()
        self._jobs.put((job, argument))

    def close(self) -> None:
        """End the thread after its last job."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, argument = entry
            job(argument)


class HostClosing:
    """For communication that the host can watch: gloo. See NOTE [ polling a communication ], 1."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter = Waiter()

    def watch(self, work: Any, pollable: bool) -> Watch:
        """Poll it, or let the thread wait for it."""
        return _Polled(work) if pollable else _Delegated(self._waiter, work.wait)

    def close(self) -> None:
        """End the thread."""
        self._waiter.close()


class _Budget:
    """Closes after a number of units."""

    __slots__ = ("_left", "_work")

    def __init__(self, units: int, work: Any) -> None:
        self._left, self._work = units, work

    def is_over(self) -> bool:
        """Whether all units are launched; asked once before each."""
        self._left -= 1
        return self._left < 0

    def wait(self) -> None:
        """Make the compute stream wait."""
        self._work.wait()


class DeviceClosing:
    """For communication that the host runs ahead of: NCCL. See NOTE [ polling a communication ], 2."""

    __slots__ = ("_units_per_window",)

    def __init__(self, units_per_window: int) -> None:
        """`units_per_window`: a layer's units over the windows of its backward pass, so that each is used alike."""
        self._units_per_window = units_per_window

    def watch(self, work: Any, pollable: bool) -> Watch:
        """A budget, whatever the communication is."""
        return _Budget(self._units_per_window, work)

    def close(self) -> None:
        """Nothing to end."""
