"""Works that complete when the emulated link says so, and the threads that wait for the real ones.

Gloo says of a send or receive only inside `wait()` that it is done, and finishes reduce-scatter there. So every real
work is waited for by a thread of its own, which sleeps in the kernel; the threads are used again.
"""

import queue
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch.distributed import Work

from megatron.pretrain.distributed.emulated_link.link import EmulatedLink, Transfer

Job = Callable[[], None]


class Waiters:
    """As many threads as there are jobs at a time. A job may block for long; it must not raise."""

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[Job | None]] = []
        self._lock = threading.Lock()
        self._is_closed = False

    def run(self, job: Job) -> None:
        """Start a job on an idle thread, or on a new one."""
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = queue.SimpleQueue()
            # Daemons: a peer that died must not keep this process from ending.
            threading.Thread(target=self._work, args=(inbox,), name="emulated-link-waiter", daemon=True).start()
        inbox.put(job)

    def close(self) -> None:
        """Let idle threads end, and busy ones after their job."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for inbox in idle:
            inbox.put(None)

    def _work(self, inbox: "queue.SimpleQueue[Job | None]") -> None:
        while (job := inbox.get()) is not None:
            job()
            del job  # it may hold tensors
            with self._lock:
                if self._is_closed:
                    return
                self._idle.append(inbox)


class EmulatedWork(Work):
    """A `torch.distributed.Work` that is complete after the real one, at the time that the emulated link gives.

    Args:
        real: the real work; it and its tensors are kept until it is complete.
        transfer: what it moves.
        link: the link of this rank.
        waiters: where to wait for the real work.
    """

    def __init__(self, real: Work, transfer: Transfer, link: EmulatedLink, waiters: Waiters) -> None:
        super().__init__()
        self._real, self._transfer, self._link = real, transfer, link
        self._is_transferred = threading.Event()
        self._error: BaseException | None = None
        self._complete_at_s = 0.0
        waiters.run(self._follow)

    def _follow(self) -> None:
        try:
            self._real.wait()
            self._complete_at_s = self._link.carry(self._transfer)
        except BaseException as error:  # it belongs to whoever waits for this work
            self._error = error
        finally:
            self._is_transferred.set()

    def is_completed(self) -> bool:
        """Whether the result is there and its time has come; never blocks."""
        if not self._is_transferred.is_set():
            return False
        return self._error is not None or self._link.clock_s() >= self._complete_at_s

    def is_success(self) -> bool:
        """Whether it is complete, and without an error."""
        return self.is_completed() and self._error is None

    def exception(self) -> BaseException | None:
        """The error of the real work, if it ended with one."""
        return self._error

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Sleep until complete. The real work is bounded by the timeout of its process group.

        Args:
            timeout: give up after this; zero: never.

        Raises:
            RuntimeError: not complete in time, or what the real work raised.
        """
        patience_s = timeout.total_seconds() or None
        deadline_s = None if patience_s is None else self._link.clock_s() + patience_s
        in_time = self._is_transferred.wait(patience_s)
        if self._error is not None:
            raise self._error
        if not in_time or (deadline_s is not None and self._complete_at_s > deadline_s):
            raise RuntimeError(f"timed out waiting {patience_s:g} s for a transfer on the emulated link")
        while (left_s := self._complete_at_s - self._link.clock_s()) > 0:
            time.sleep(left_s)
        return True

    def synchronize(self) -> None:
        """The same as `wait`: there is no stream."""
        self.wait()

    def result(self) -> list[torch.Tensor]:
        """The tensors of the real work, once complete."""
        self.wait()
        return self._real.result()

    def _source_rank(self) -> int:
        self.wait()
        return self._real._source_rank()

    def source_rank(self) -> int:
        """Whom a receive from anybody heard from."""
        return self._source_rank()

    def get_future(self) -> NoReturn:
        """Not offered: a future of the real work would be early.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a work on the emulated link has no future; use wait() or is_completed()")

    def get_future_result(self) -> NoReturn:
        """Not offered, as `get_future`."""
        self.get_future()


def follow(real: Any, transfer: Transfer, link: EmulatedLink, waiters: Waiters) -> Any:
    """An emulated work for a real one; None for None (an operation that has completed, or of another group)."""
    return None if real is None else EmulatedWork(real, transfer, link, waiters)
