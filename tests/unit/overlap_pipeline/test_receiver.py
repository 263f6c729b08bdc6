"""A thread per peer waits for receives, in order, so that others may ask."""

import threading
import time
from typing import Any

import pytest
import torch

from megatron.overlap.pipeline.receiver import Receivers


class HeldWork:
    """A receive that ends when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.arrive, self.error = threading.Event(), error
        self.thread: str = ""

    def wait(self) -> None:
        self.thread = threading.current_thread().name
        assert self.arrive.wait(10)
        if self.error is not None:
            raise self.error


def until(holds: Any) -> None:
    deadline_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(1e-3)


def test_a_receive_shows_as_completed_without_anybody_waiting() -> None:
    receivers, first, second = Receivers(), HeldWork(), HeldWork()
    tensor = torch.ones(1)
    one, two = receivers.follow(1, tensor, first), receivers.follow(1, tensor, second)
    assert one.tensor is tensor
    assert not one.is_completed()
    first.arrive.set()
    until(one.is_completed)
    assert not two.is_completed()
    second.arrive.set()
    two.wait()
    one.wait()
    assert first.thread == second.thread == "pipeline-receives-from-stage-1"
    receivers.close()


def test_peers_do_not_wait_for_each_other() -> None:
    receivers, slow, quick = Receivers(), HeldWork(), HeldWork()
    receivers.follow(0, torch.ones(1), slow)
    quick.arrive.set()
    receivers.follow(2, torch.ones(1), quick).wait()
    assert slow.thread != quick.thread
    slow.arrive.set()
    receivers.close()


def test_an_error_belongs_to_whoever_waits() -> None:
    receivers, broken = Receivers(), HeldWork(RuntimeError("Connection closed by peer"))
    receive = receivers.follow(1, torch.ones(1), broken)
    broken.arrive.set()
    until(receive.is_completed)
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        receive.wait()
    receivers.close()


def test_threads_end_after_their_last_receive_and_never_hold_the_process() -> None:
    receivers, work = Receivers(), HeldWork()
    receive = receivers.follow(7, torch.ones(1), work)
    (thread,) = (t for t in threading.enumerate() if t.name == "pipeline-receives-from-stage-7")
    assert thread.daemon
    receivers.close()
    receivers.close()
    work.arrive.set()
    receive.wait()
    thread.join(5)
    assert not thread.is_alive()
