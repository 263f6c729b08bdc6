"""Stop conditions of one process; agreement between ranks is in tests/distributed/test_faults.py."""

import os
import signal
import time
from dataclasses import replace

import pytest

from megatron.pretrain.config import TrainingOptions
from megatron.pretrain.training.stop import StopConditions, StopKind

OPTIONS = TrainingOptions(micro_batch_size=1)


def kinds(stop: StopConditions, iterations: int) -> list[StopKind | None]:
    return [reason.kind if (reason := stop.check(i)) else None for i in range(1, iterations + 1)]


def test_nothing_asked_nothing_stops() -> None:
    assert kinds(StopConditions(OPTIONS, host_group=None), 3) == [None, None, None]


def test_exit_interval_stops_at_multiples() -> None:
    stop = StopConditions(replace(OPTIONS, exit_interval=3), host_group=None)
    assert kinds(stop, 6) == [None, None, StopKind.INTERVAL, None, None, StopKind.INTERVAL]
    reason = stop.check(3)
    assert reason is not None
    assert "--exit-interval 3" in reason.message


def test_exit_duration_counts_minutes_from_the_start() -> None:
    clock_s = iter([100.0 + 29.0, 100.0 + 31.0])
    stop = StopConditions(
        replace(OPTIONS, exit_duration_in_mins=0.5), host_group=None, started_s=100.0, now=lambda: next(clock_s)
    )
    assert kinds(stop, 2) == [None, StopKind.DURATION]


def test_the_run_began_when_the_process_did() -> None:
    stop = StopConditions(OPTIONS, host_group=None)
    assert 0.0 < time.monotonic() - stop._started_s < 24 * 3600
    assert time.monotonic() - stop._started_s > time.process_time() / (os.cpu_count() or 1) / 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_after_the_iteration_and_handlers_are_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopConditions(replace(OPTIONS, exit_signal_handler=True), host_group=None) as stop:
        assert stop.check(1) is None
        os.kill(os.getpid(), number)
        reason = stop.check(2)
        os.kill(os.getpid(), number)  # impatience changes nothing
        stop.announce()
        assert stop.check(3) is not None
    assert reason is not None
    assert (reason.kind, reason.message) == (StopKind.SIGNAL, f"{number.name} received, leaving after iteration 2")
    assert signal.getsignal(number) is before


def test_signals_keep_their_meaning_when_not_asked_for() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopConditions(OPTIONS, host_group=None):
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_forked_child_outlives_the_signal() -> None:
    with StopConditions(replace(OPTIONS, exit_signal_handler=True), host_group=None):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os.write(write_end, b"alive")
            os._exit(0)
        os.close(write_end)
        assert os.read(read_end, 5) == b"alive"
        assert os.waitpid(child, 0)[1] == 0
        os.close(read_end)
