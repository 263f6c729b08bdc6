"""The runtime on a CUDA device: the same bits, on the compute stream and on a side stream, and the memory promised."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from overlap_recompute import ops
from overlap_recompute.ops.streams import CudaStreams
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.runtime import InlineLane, Lane, Policy, Runtime, StreamLane
from tests.unit.runtime.models import AttentionBlock, CnnBlock, MlpBlock, Stack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and none is visible"),
]

DEVICE = torch.device("cuda", 0)


def on_torch_streams() -> Lane:
    """As without the extension's CUDA part."""
    return StreamLane(ops.Lane(DEVICE, streams=CudaStreams(DEVICE)))


LANES: dict[str, Callable[[], Lane]] = {
    "compute stream": InlineLane,
    "side stream": lambda: StreamLane(ops.Lane(DEVICE)),
    "side stream of torch": on_torch_streams,
}
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "mlp": (lambda: Stack(*(MlpBlock(256) for _ in range(4))), (64, 256), ("norm", "fc1", "act", "drop")),
    "cnn": (lambda: Stack(*(CnnBlock(16) for _ in range(4))), (8, 16, 32, 32), ("norm1", "conv1", "norm2")),
    "attention": (
        lambda: Stack(*(AttentionBlock(128, 4, True) for _ in range(3))),
        (4, 64, 128),
        ("norm", "qkv", "attend"),
    ),
}


def step(model: nn.Module, inputs: list[Tensor], runtime: Runtime | None, dtype: torch.dtype) -> list[Tensor]:
    """All forward passes, each followed by a window, then all backward passes; losses, gradients, generator state."""
    torch.cuda.manual_seed(7)
    losses = []
    for key, x in enumerate(inputs):
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not torch.float32):
            if runtime is None:
                losses.append(model(x))
                continue
            with runtime.microbatch(key):
                losses.append(model(x))
        units = iter(range(5))
        runtime.queue.fill(lambda units=units: next(units, None) is None)  # type: ignore[misc]
    for loss in losses:
        loss.backward()
    if runtime is not None:
        runtime.step_end()
    torch.cuda.synchronize()
    found = [torch.stack(losses).detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    model.zero_grad(set_to_none=True)
    return [*found, torch.cuda.get_rng_state()]


@pytest.fixture(autouse=True)
def _deterministic() -> object:
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_bit_equal(name: str, lane: str, dtype: torch.dtype) -> None:
    make, shape, units = MODELS[name]
    torch.manual_seed(0)
    model = make().cuda()
    inputs = [torch.randn(shape, device="cuda") for _ in range(3)]
    expected = step(model, inputs, None, dtype)
    runtime = Runtime(Policy.recompute_all(), lane=LANES[lane]())
    runtime.attach(model, [f"blocks.*.{unit}" for unit in units])
    for _ in range(5):
        found = step(model, inputs, runtime, dtype)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    runtime.detach()


def test_verify_accepts_a_replay_with_dropout_on_the_side_stream() -> None:
    model = Stack(*(MlpBlock(64) for _ in range(2))).cuda()
    runtime = Runtime(Policy.recompute_all(), lane=LANES["side stream"](), verify=True)
    runtime.attach(model, ["blocks.*.drop", "blocks.*.act"])
    step(model, [torch.randn(8, 64, device="cuda")], runtime, torch.float32)


def test_the_peak_is_that_of_on_demand_and_the_cap() -> None:
    make, _, units = MODELS["mlp"]
    model = make().cuda()
    x = torch.randn(4096, 256, device="cuda")

    def peak_bytes(cap_bytes: int) -> int:
        lane = LANES["side stream"]()
        runtime = Runtime(Policy.recompute_all(), lane=lane, prefetch_cap_bytes=cap_bytes)
        runtime.attach(model, [f"blocks.*.{unit}" for unit in units])
        step(model, [x], runtime, torch.float32)
        torch.cuda.reset_peak_memory_stats()
        step(model, [x], runtime, torch.float32)
        runtime.detach()
        return torch.cuda.max_memory_allocated()

    cap_bytes = 16 * 2**20
    # Temporaries of one hidden replay come on top: at most the unit's own output once more.
    assert peak_bytes(cap_bytes) <= peak_bytes(0) + cap_bytes + 4096 * 512 * 4


def test_memory_that_the_lane_reads_is_not_used_again_too_early() -> None:
    """A slow lane and a compute stream that allocates at once: a fence that comes too late would change bits."""
    model = Stack(*(MlpBlock(512) for _ in range(4))).cuda()
    units = [f"blocks.*.{unit}" for unit in MODELS["mlp"][2]]
    inputs = [torch.randn(2048, 512, device="cuda") for _ in range(4)]
    expected = step(model, inputs, None, torch.float32)
    runtime = Runtime(Policy.recompute_all(), lane=LANES["side stream"]())
    runtime.attach(model, units)
    for _ in range(20):
        found = step(model, inputs, runtime, torch.float32)
        noise = [torch.full((2048, 1024), float("nan"), device="cuda") for _ in range(8)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        del noise


class TwoStreams(nn.Module):
    """A norm whose output a branch on a stream of its own reads, too, as overlapped shared experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.here, self.away = nn.LayerNorm(1024), nn.Linear(1024, 1024), nn.Linear(1024, 1024)
        self.stream = torch.cuda.Stream()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        self.stream.wait_stream(torch.cuda.current_stream())
        h.record_stream(self.stream)
        here = self.here(h)
        with torch.cuda.stream(self.stream):
            away = self.away(h).relu()
        torch.cuda.current_stream().wait_stream(self.stream)
        away.record_stream(torch.cuda.current_stream())
        return x + here * away


@pytest.mark.parametrize("lane", LANES)
def test_what_a_second_stream_reads_is_bit_equal(lane: str) -> None:
    model = Stack(*(TwoStreams() for _ in range(4))).cuda()
    inputs = [torch.randn(4096, 1024, device="cuda") for _ in range(2)]
    expected = step(model, inputs, None, torch.float32)
    runtime = Runtime(Policy.recompute_all(), lane=LANES[lane]())
    runtime.attach(model, ["blocks.*.norm", "blocks.*.here", "blocks.*.away"])
    for _ in range(5):
        found = step(model, inputs, runtime, torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    runtime.detach()


def test_a_capture_is_refused() -> None:
    runtime = Runtime(Policy.save_all())
    model = nn.Linear(8, 8).cuda()
    x = torch.randn(2, 8, device="cuda")
    model(x)
    captured = torch.cuda.graph(torch.cuda.CUDAGraph())
    with pytest.raises(ConfigError, match="CUDA graph"), captured, runtime.microbatch(0):
        model(x)
