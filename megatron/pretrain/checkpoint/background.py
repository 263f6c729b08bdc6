"""Hooks megatron/core/dist_checkpointing/strategies/async_utils.py of megatron-core 0.16.1: writing in a forked child.

The child sees memory as it was at the fork, so training may go on changing the weights. A spawned, persistent worker
(`AsyncCallsQueue(persistent=True)`) must not be used: on a CPU it shares the tensors and silently saves later values.
"""

import gc
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest

from megatron.pretrain.checkpoint.ranks import disk_error_behind
from megatron.pretrain.checkpoint.restricted_pickle import read_restricted

T = TypeVar("T")

_ORPHAN_CHECK_S = 0.5
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class BackgroundWriter:
    """At most one write in a forked child, and what follows it once the children of all ranks have ended."""

    def __init__(self) -> None:
        self._queue = AsyncCallsQueue(persistent=False)

    @property
    def is_busy(self) -> bool:
        """Whether a write has been started and not yet completed."""
        return self._queue.get_num_unfinalized_calls() > 0

    def start(self, write: Callable[[], T], complete: Callable[[Callable[[], T]], None]) -> None:
        """Run `write` in a child forked now.

        Args:
            write: local work; its result may hold only what `restricted_pickle` admits.
            complete: called from `poll` on every rank, with a function that returns what `write` returned or raises
                what became of it. It is a collective.
        """
        report = tempfile.TemporaryFile()  # noqa: SIM115 (lives until `complete` has read it)
        request = AsyncRequest(
            _write_and_report, (write, report, os.getpid()), [lambda: complete(lambda: _read(report))]
        )
        self._queue.schedule_async_request(request)

    def poll(self, *, blocking: bool) -> None:
        """Complete the write if the children of all ranks have ended, or wait for them. Collective while busy."""
        if self.is_busy:
            self._queue.maybe_finalize_async_calls(blocking=blocking)

    def abandon(self) -> None:
        """Kill this rank's child, if any. Local."""
        for call in self._queue.async_calls:
            call.async_caller.close(abort=True)
        self._queue.async_calls.clear()


def _write_and_report(write: Callable[[], T], report: IO[bytes], parent_pid: int) -> None:
    # Batch systems signal every process of a job; the run decides, and waits for this child.
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    gc.disable()  # a collection here could free what belongs to the parent's CUDA context
    threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()
    outcome: tuple[str, T | None]
    try:
        outcome = ("", write())
    except Exception as error:
        cause = disk_error_behind(error)
        outcome = (f"{type(cause).__name__}: {cause}", None)
    pickle.dump(outcome, report)
    report.flush()


def _end_with_parent(parent_pid: int) -> None:
    """End this child when its run was killed: its copies of the run's sockets would hide the death from the peers."""
    while os.getppid() == parent_pid:
        time.sleep(_ORPHAN_CHECK_S)
    os._exit(1)


def _read(report: IO[bytes]) -> Any:
    with report:
        report.seek(0)
        try:
            failure, result = read_restricted(report)
        except Exception as error:
            raise OSError("the background writer ended without a result (killed, or out of memory)") from error
    if failure:
        raise OSError(f"in the background writer: {failure}")
    return result
