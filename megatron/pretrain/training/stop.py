"""When to end a run before its last iteration: a signal, a time limit, an interval. All ranks leave at the same one.

A signal reaches ranks at different moments, and clocks differ, so these two need agreement: one all-reduce of two
integers per iteration on a host-side (gloo) group, and only when one of them is switched on. `announce` may start it
before the optimizer step, so that it runs beside the step (costs: docs/faults.md).
"""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import FrameType, TracebackType
from typing import Any

import psutil
import torch
from torch.distributed import ProcessGroup, ReduceOp, Work

from megatron.pretrain.config import TrainingOptions

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Sent by batch systems before a job's end: scancel and torchrun's agent, and Slurm's `--signal=USR1@120`."""

SECONDS_PER_MINUTE = 60.0


class StopKind(str, Enum):
    """Which condition ended the run."""

    SIGNAL = "signal"
    DURATION = "duration"
    INTERVAL = "interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopReason:
    """Why a run ends now."""

    kind: StopKind
    """The condition."""

    message: str
    """One line for the log."""


class StopConditions:
    """Asks after every iteration whether to stop. Enter it (`with`) on the main thread to catch signals.

    Within the `with` a signal only sets a flag; a second one changes nothing. Forked children inherit the handler and
    so survive a signal that the batch system sends to every process of the job (torch's data loader workers replace it
    with their own and need more). Leaving restores the handlers of before.

    Args:
        options: --exit-signal-handler, --exit-duration-in-mins, --exit-interval.
        host_group: a gloo group of all ranks; None in a run of one process.
        started_s: when the run began, on the clock of `now`; the start of this process by default.
        now: a clock in seconds.
    """

    def __init__(
        self,
        options: TrainingOptions,
        *,
        host_group: ProcessGroup | None,
        started_s: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options, self._group, self._now = options, host_group, now
        self._started_s = now() - _process_age_s() if started_s is None else started_s
        self._signal = 0
        self._handlers_before: dict[signal.Signals, Any] = {}
        self._flags: torch.Tensor | None = None
        self._work: Work | None = None

    def __enter__(self) -> "StopConditions":
        if self._options.exit_signal_handler:
            assert threading.current_thread() is threading.main_thread(), "signals arrive on the main thread"
            self._handlers_before = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before = {}

    def announce(self) -> None:
        """Start to compare notes with the other ranks; `check` then need not wait. Every rank calls it, or none.

        Best called between the backward pass and the optimizer step: what happens later is seen one iteration later.
        """
        if self._group is None or not self._needs_agreement():
            return
        assert self._work is None, "announce() twice without check()"
        self._flags = self._own_flags()
        self._work = torch.distributed.all_reduce(self._flags, ReduceOp.MAX, group=self._group, async_op=True)

    def check(self, iteration: int) -> StopReason | None:
        """Why to stop now that `iteration` (counted from 1) is done; the same answer on every rank, None to go on."""
        signal_number, is_late = self._agreed_flags()
        if signal_number:
            name = signal.Signals(signal_number).name
            return StopReason(kind=StopKind.SIGNAL, message=f"{name} received, leaving after iteration {iteration}")
        if is_late:
            minutes = self._options.exit_duration_in_mins
            return StopReason(
                kind=StopKind.DURATION, message=f"ran for {minutes:g} minutes, leaving after iteration {iteration}"
            )
        interval = self._options.exit_interval
        if interval and iteration % interval == 0:
            return StopReason(
                kind=StopKind.INTERVAL, message=f"iteration {iteration} is a multiple of --exit-interval {interval}"
            )
        return None

    def _needs_agreement(self) -> bool:
        return self._options.exit_signal_handler or self._options.exit_duration_in_mins is not None

    def _own_flags(self) -> torch.Tensor:
        limit_minutes = self._options.exit_duration_in_mins
        minutes = (self._now() - self._started_s) / SECONDS_PER_MINUTE
        is_late = limit_minutes is not None and minutes > limit_minutes
        return torch.tensor([self._signal, int(is_late)], dtype=torch.int32)

    def _agreed_flags(self) -> tuple[int, int]:
        if not self._needs_agreement():
            return 0, 0
        if self._work is None:
            self.announce()
        if self._work is not None:
            self._work.wait()
        flags = self._own_flags() if self._flags is None else self._flags
        self._work, self._flags = None, None
        signal_number, is_late = flags.tolist()
        return signal_number, is_late

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number


def _process_age_s() -> float:
    return max(0.0, time.time() - psutil.Process().create_time())
