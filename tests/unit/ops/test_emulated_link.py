"""The emulated link: as slow as it says, at no cost of processor time, and its fences behave like a lane's."""

import time

import pytest
import torch

from overlap_recompute import ops
from overlap_recompute.ops import backend as backend_module
from tests.unit.ops.support import needs_extension

CPU = torch.device("cpu")
TRIES = 50
"""What takes too long is tried again: the machine may do much else."""


@pytest.fixture(params=[pytest.param("extension", marks=needs_extension), "fallback"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fallback":
        monkeypatch.setattr(backend_module, "extension", None)
    return str(request.param)


def test_a_transfer_takes_latency_plus_bytes_over_bandwidth_and_no_processor_time() -> None:
    link = ops.EmulatedLink(CPU, latency_us=20_000, bandwidth_gbps=0.4)
    assert link.duration_us(1_000_000) == pytest.approx(40_000)
    returned_s, busy_s = [], []
    while len(returned_s) < TRIES and not (returned_s and min(returned_s) < 0.035 and min(busy_s) < 0.020):
        start_s, before_s = time.monotonic(), time.process_time()
        fence = link.transfer(1_000_000)
        returned_s.append(time.monotonic() - start_s)
        assert not fence.passed() or time.monotonic() - start_s >= 0.040
        fence.wait(0)
        assert fence.passed()
        assert time.monotonic() - start_s >= 0.040
        busy_s.append(time.process_time() - before_s)
    assert min(returned_s) < 0.035
    assert min(busy_s) < 0.020
    link.close()


def test_bytes_queue_up_and_latencies_overlap() -> None:
    link = ops.EmulatedLink(CPU, latency_us=30_000, bandwidth_gbps=0.8)
    elapsed_s: list[float] = []
    while len(elapsed_s) < TRIES and min(elapsed_s, default=1.0) >= 0.110:
        start_s = time.monotonic()
        fences = [link.transfer(1_000_000) for _ in range(3)]  # 10 ms of bytes each
        for fence in fences:
            fence.wait(0)
        elapsed_s.append(time.monotonic() - start_s)
    assert min(elapsed_s) >= 0.060
    assert min(elapsed_s) < 0.110  # 120 ms if each waited for the latency of the one before
    link.close()


def test_the_bytes_arrive() -> None:
    link = ops.EmulatedLink(CPU, latency_us=0, bandwidth_gbps=100)
    source, target = torch.arange(1000.0), torch.zeros(1000)
    link.transfer(2000, source=source, target=target, after=0).wait(0)
    assert torch.equal(target[:500], source[:500])
    assert not target[500:].any()
    link.close()


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ({"latency_us": -1, "bandwidth_gbps": 1}, "a latency of at least 0"),
        ({"latency_us": 1, "bandwidth_gbps": 0}, "0 Gbit/s"),
        ({"latency_us": 1, "bandwidth_gbps": 1, "blocks": 0}, "one block or more"),
    ],
)
def test_an_impossible_link_is_refused(link: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.EmulatedLink(CPU, **link)


def test_buffers_that_do_not_fit_are_refused() -> None:
    link = ops.EmulatedLink(CPU, latency_us=0, bandwidth_gbps=100)
    with pytest.raises(ValueError, match="a buffer of 16 bytes; expected contiguous, 17 or more"):
        link.transfer(17, source=torch.zeros(4), target=torch.zeros(8))
    with pytest.raises(ValueError, match="source and target, or neither"):
        link.transfer(4, source=torch.zeros(4))
    link.close()
