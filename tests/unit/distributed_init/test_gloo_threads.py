"""gloo's threads get short turns, so that they come before what computes."""

import ctypes
import os
import platform
from collections.abc import Iterator

import pytest
import torch

from megatron.pretrain.distributed import gloo_threads
from megatron.pretrain.distributed.gloo_threads import ATTRIBUTES, TURN_NS, give_gloo_short_turns

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
TURN = 5
"""Place of a thread's turn in `ATTRIBUTES`."""


@pytest.fixture
def group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def turn_ns(thread: int) -> int:
    found = ctypes.create_string_buffer(ATTRIBUTES.size)
    done = ctypes.CDLL(None).syscall(SCHED_GETATTR[platform.machine()], thread, found, ATTRIBUTES.size, 0)
    assert done == 0
    turn: int = ATTRIBUTES.unpack(found.raw)[TURN]
    return turn


@pytest.mark.usefixtures("group")
@pytest.mark.skipif(platform.machine() not in SCHED_GETATTR, reason="no number of the system call")
def test_its_threads_and_no_others_get_short_turns() -> None:
    before = {thread: os.sched_getscheduler(thread) for thread in gloo_threads.gloo_threads()}
    given = give_gloo_short_turns()
    assert given == len(before) > 0
    if turn_ns(0) == 0:
        pytest.skip("this kernel gives all threads the same turns")
    assert {turn_ns(thread) for thread in before} == {TURN_NS}
    assert turn_ns(os.getpid()) > TURN_NS
    assert {thread: os.sched_getscheduler(thread) for thread in before} == before, "no real time: see the NOTE"
    torch.distributed.all_reduce(torch.ones(4))


@pytest.mark.usefixtures("group")
def test_on_other_machines_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert give_gloo_short_turns() == 0


def test_threads_that_have_ended_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: object) -> int:
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(os, "getpriority", gone)
    monkeypatch.setattr(gloo_threads, "gloo_threads", lambda: [1, 2])
    assert give_gloo_short_turns() == 0
