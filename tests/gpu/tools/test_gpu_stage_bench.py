"""tools/gpu_stage_bench.py on a CUDA device: the emulated links keep their time, arms agree, peaks are the allocator's.

A process of its own for every run: megatron.core takes one platform in a process.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from tools.stage_bench_lib.link import CopyEngineLink, Link, PacedKernelLink, Rate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and none is visible"),
]

TOOL = pathlib.Path(__file__).resolve().parents[3] / "tools" / "gpu_stage_bench.py"
SMALL = (
    "--preset gpt-1.3b --tensor-parallel 4 --pipeline-parallel 4 --layers 2 --sequence 1024 --iterations 3 --rounds 1 "
    "--alpha-us 500"
)


def run(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *text.split()],
        capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def link_named(name: str, rate: Rate) -> Link:
    device = torch.device("cuda", 0)
    return PacedKernelLink(rate, device, blocks=8) if name == "paced-kernel" else CopyEngineLink(rate, device)


@pytest.mark.parametrize("name", ["paced-kernel", "copy-engine"])
def test_a_transfer_takes_its_time_and_the_stream_waits_for_it(name: str) -> None:
    rate = Rate(alpha_us=200.0, gbyte_per_s=10.0)
    link = link_named(name, rate)
    wire_bytes = 8_000_000  # 1000 us
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        begin.record()
        transit = link.start(wire_bytes)
        transit.wait()
        transit.wait()
        end.record()
        torch.cuda.synchronize()
    assert begin.elapsed_time(end) * 1e3 == pytest.approx(rate.duration_us(wire_bytes), rel=0.15)
    assert transit.is_over()
    link.close()


@pytest.mark.parametrize("link", ["paced-kernel", "copy-engine"])
def test_arms_agree_and_windows_hide(link: str) -> None:
    done = run(f"{SMALL} --link {link} --json", CUDA_DEVICE_MAX_CONNECTIONS="32")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["label"].startswith("one GPU, one stage at TP-shard shapes")
    assert record["taken"]["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"
    assert record["gradients_equal"] and record["do_not_fit"] == {}
    arms = record["arms"]
    assert arms["same units, on demand"]["peak_bytes"] < arms["none"]["peak_bytes"]
    assert arms["overlapped"]["hidden_replays"] > 0
    assert record["alone"]["communication_us"] == pytest.approx(record["alone"]["stated_us"], rel=0.2)
    assert record["hidden"]["fraction"] > 0.2


def test_a_stage_that_does_not_fit_is_refused_before_it_is_built() -> None:
    done = run(f"{SMALL} --memory-gib 0.05")
    assert done.returncode == 2
    assert "GiB short" in done.stderr and "Traceback" not in done.stderr
