"""gloo's threads come before what computes, if this process may say so."""

import os
from collections.abc import Iterator

import pytest
import torch

from megatron.pretrain.distributed import gloo_threads
from megatron.pretrain.distributed.gloo_threads import put_gloo_first


@pytest.fixture
def group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def may_ask_for_real_time() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True


@pytest.mark.usefixtures("group")
def test_its_threads_and_no_others_get_real_time_priority() -> None:
    if not may_ask_for_real_time():
        pytest.skip("needs the right to give real-time priority (CAP_SYS_NICE)")
    given = put_gloo_first()
    found = gloo_threads.gloo_threads()
    assert given == len(found) > 0
    assert {os.sched_getscheduler(thread) for thread in found} == {os.SCHED_FIFO}
    others = {int(thread) for thread in os.listdir("/proc/self/task")} - set(found)
    assert {os.sched_getscheduler(thread) for thread in others} == {os.SCHED_OTHER}
    torch.distributed.all_reduce(torch.ones(4))


@pytest.mark.usefixtures("group")
def test_without_the_right_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    before = {thread: os.sched_getscheduler(thread) for thread in gloo_threads.gloo_threads()}
    assert before and put_gloo_first() == 0
    assert {thread: os.sched_getscheduler(thread) for thread in before} == before


def test_threads_that_have_ended_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: object) -> None:
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(os, "sched_setscheduler", gone)
    monkeypatch.setattr(gloo_threads, "gloo_threads", lambda: [1, 2])
    assert put_gloo_first() == 0
