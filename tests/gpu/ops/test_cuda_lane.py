"""The lane, marks in stream time, and the emulated link on CUDA."""

import os
import subprocess
import sys
import time
import weakref

import pytest
import torch

from overlap_recompute import ops
from tests.gpu.ops.support import gpu_marks, on_gpu, spin_ms

pytestmark = gpu_marks


class Token:
    """Something whose death can be seen."""


def test_the_lane_waits_for_compute_and_compute_waits_for_the_fence() -> None:
    device = on_gpu()
    x, y = torch.zeros(1 << 20, device=device), torch.zeros(1 << 20, device=device)
    token = Token()
    alive = weakref.ref(token)
    with ops.Lane(device) as lane:
        spin_ms(20)
        x.fill_(1)
        lane.open_window()
        fence = lane.launch(lambda: (spin_ms(20), y.copy_(x)), [x, y, token])
        del token
        assert not fence.passed()
        assert alive() is not None
        fence.wait(ops.current_stream(device))
        assert alive() is None  # in stream order: the host has not waited
        z = y + 1
        assert not torch.cuda.current_stream().query()
        assert bool((z == 2).all())
        counts = lane.counts()
        assert (counts.waited, counts.open_fences, counts.guards_held, counts.events_in_use) == (1, 0, 0, 0)


def test_the_lane_has_the_lowest_priority() -> None:
    device = on_gpu()
    with ops.Lane(device) as lane:
        assert torch.cuda.ExternalStream(lane.stream, device=device).priority == torch.cuda.Stream(priority=0).priority
        assert lane.stream != ops.current_stream(device)


def test_a_lane_finds_the_stream_and_the_memory_of_the_one_before() -> None:
    device = on_gpu()
    reserved_bytes, streams = set(), set()
    for _ in range(3):
        lane = ops.Lane(device)
        streams.add(lane.stream)
        lane.open_window()
        lane.launch(lambda: torch.empty(1 << 26, device=device)).wait(ops.current_stream(device))
        reserved_bytes.add(torch.cuda.memory_reserved(device))
        lane.close()
    assert len(streams) == 1
    assert len(reserved_bytes) == 1


EXPANDABLE = """
import torch
from overlap_recompute import ops
device = torch.device("cuda", 0)
lane = ops.Lane(device)
lane.open_window()
lane.launch(lambda: torch.ones(1 << 26, device=device)).wait(ops.current_stream(device))
lane.close()
del lane
torch.cuda.empty_cache()  # asks the lane's stream, whose memory this is
assert torch.cuda.memory_reserved() == 0
"""


def test_memory_that_grows_can_be_given_back_when_the_lane_is_gone() -> None:
    on_gpu()
    environ = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    subprocess.run([sys.executable, "-c", EXPANDABLE], check=True, timeout=120, env=environ)


def test_memory_of_the_compute_pool_is_safe_to_reuse_after_the_wait() -> None:
    """Outputs come from the compute stream's pool, are written by the lane, and are freed right after the wait."""
    device = on_gpu()
    with ops.Lane(device) as lane:
        for step in range(200):
            source = torch.full((1 << 18,), float(step), device=device)
            out = torch.empty_like(source)
            lane.open_window()
            fence = lane.launch(lambda out=out, source=source: out.copy_(source), [out, source])
            del source
            fence.wait(ops.current_stream(device))
            total = out.sum()
            del out
            noise = torch.full((1 << 18,), -1.0, device=device)  # takes the freed block
            del noise
            if step % 50 == 49:
                assert total.item() == step * (1 << 18)


def test_a_failure_surfaces_at_the_launch_and_leaves_nothing_behind() -> None:
    device = on_gpu()

    def fail() -> None:
        spin_ms(5)
        raise ZeroDivisionError("unit L3.fc1")

    lane = ops.Lane(device)
    with pytest.raises(ZeroDivisionError, match=r"L3\.fc1"):
        lane.launch(fail, [torch.empty(1, device=device)])
    lane.close()
    counts = lane.counts()
    assert (counts.guards_held, counts.events_alive) == (0, 0)


def test_marks_measure_what_events_measure() -> None:
    device = on_gpu()
    stream_marks = ops.StreamMarks(device)
    unit = stream_marks.intern("R.fc1")
    with ops.Lane(device, marks=stream_marks) as lane:
        stream = torch.cuda.ExternalStream(lane.stream, device=device)
        before_ns = time.monotonic_ns()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record(stream)
        fences = [lane.launch(lambda: spin_ms(5), name=unit, value=value) for value in range(4)]
        last.record(stream)
        assert len(stream_marks.drain()) < 8  # resolved later, not waited for
        fences[-1].host_wait()
        after_ns = time.monotonic_ns()
        for fence in fences:
            fence.wait(ops.current_stream(device))
        marks = stream_marks.drain()
        spans_ns = marks["time_ns"][1::2] - marks["time_ns"][0::2]
        assert spans_ns.sum() * 1e-6 == pytest.approx(first.elapsed_time(last), rel=0.05)
        assert before_ns - 1_000_000 <= marks["time_ns"][0]
        assert marks["time_ns"][-1] <= after_ns + 1_000_000
        assert set(marks["stream"]) == {lane.stream}


@pytest.mark.parametrize("copies", [False, True])
def test_an_emulated_transfer_takes_its_time_and_leaves_compute_alone(copies: bool) -> None:
    device = on_gpu()
    link = ops.EmulatedLink(device, latency_us=100, bandwidth_gbps=400, blocks=8)
    size_bytes = 50_000_003
    buffers = {}
    if copies:
        source = torch.randint(0, 255, (size_bytes,), dtype=torch.uint8, device=device)
        buffers = {"source": source, "target": torch.zeros_like(source)}
    link.transfer(1000).host_wait()
    torch.cuda.synchronize()
    start = time.perf_counter()
    fence = link.transfer(size_bytes, after=ops.current_stream(device), **buffers)
    torch.zeros(16, device=device).add_(1).cpu()  # compute goes on
    assert not fence.passed()
    fence.host_wait()
    elapsed_us = (time.perf_counter() - start) * 1e6
    assert elapsed_us == pytest.approx(link.duration_us(size_bytes), rel=0.15)
    fence.wait(ops.current_stream(device))
    if copies:
        assert torch.equal(buffers["source"], buffers["target"])
    link.close()
