"""Threads that wait for gloo's receives, so that others can ask whether they are over.

gloo's `is_completed()` of a receive stays False until somebody calls `wait()`, which releases Python's interpreter
lock while it blocks. There is one thread for each peer that sends here, as messages of one peer arrive in the order in
which they are waited for; it lives as long as the schedule. It is a daemon: where a peer is lost its wait may not end,
and the process must.
"""

import queue
import threading
from typing import Any

from torch import Tensor


class FollowedReceive:
    """A receive that a thread waits for."""

    __slots__ = ("tensor", "is_completed", "_work", "_here", "_error")

    def __init__(self, tensor: Tensor, work: Any) -> None:
        self.tensor, self._work = tensor, work
        self._here = threading.Event()
        self._error: BaseException | None = None
        self.is_completed = self._here.is_set

    def follow(self) -> None:
        """Wait for it; on the thread."""
        try:
            self._work.wait()
        except BaseException as error:  # it belongs to whoever waits for the tensor
            self._error = error
        finally:
            self._here.set()

    def wait(self) -> None:
        """Wait until the thread has it.

        Raises:
            RuntimeError: what the receive ended with.
        """
        self._here.wait()
        if self._error is not None:
            raise self._error


class Receivers:
    """One thread for each peer, started at the first receive from it."""

    def __init__(self) -> None:
        self._inboxes: dict[int, queue.SimpleQueue[FollowedReceive | None]] = {}

    def follow(self, peer: int, tensor: Tensor, work: Any) -> FollowedReceive:
        """Wait for a receive behind those of the same peer.

        Args:
            peer: pipeline rank that sends.
            tensor: what is received into.
            work: the receive, as torch.distributed returned it.
        """
        inbox = self._inboxes.get(peer)
        if inbox is None:
            inbox = self._inboxes[peer] = queue.SimpleQueue()
            name = f"pipeline-receives-from-stage-{peer}"
            threading.Thread(target=_follow_all, args=(inbox,), name=name, daemon=True).start()
        receive = FollowedReceive(tensor, work)
        inbox.put(receive)
        return receive

    def close(self) -> None:
        """End each thread after its last receive; does not wait for them."""
        for inbox in self._inboxes.values():
            inbox.put(None)
        self._inboxes = {}


def _follow_all(inbox: "queue.SimpleQueue[FollowedReceive | None]") -> None:
    while (receive := inbox.get()) is not None:
        receive.follow()
        del receive  # it holds a tensor
