"""Replay kernels on CUDA: the bits of the CPU twins, the bits of torch where claimed, the cap on thread blocks."""

import json
import pathlib
from collections.abc import Callable

import pytest
import torch

from overlap_recompute import ops
from tests.gpu.ops.support import gpu_marks, on_gpu
from tests.unit.ops.support import DTYPES, random_tensor, same_bits

pytestmark = gpu_marks

SHAPES = [(0, 8), (1, 1), (3, 7), (5, 513), (4, 1000), (7, 1025), (130, 4096), (2, 12288)]
Replay = Callable[[Callable[[torch.Tensor], torch.Tensor], int], torch.Tensor]


def replays(shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Replay]:
    """Kernel -> run(place, max_blocks): `place` moves an operand to the device under test."""
    rows, columns = shape
    x, residual = random_tensor(shape, dtype) * 2, random_tensor(shape, dtype, 1)
    weight, bias = random_tensor((columns,), dtype, 2), random_tensor((columns,), dtype, 3)
    gated, gate_bias = random_tensor((rows, 2 * columns), dtype, 4), random_tensor((2 * columns,), dtype, 5)
    draw = {"p": 0.3, "seed": 2**63 + 5, "offset": 2**40 + 7}
    return {
        "mean": lambda to, cap: ops.row_statistics(to(x), eps=1e-5, max_blocks=cap)[0],
        "rstd": lambda to, cap: ops.row_statistics(to(x), eps=1e-5, max_blocks=cap)[1],
        "rms": lambda to, cap: ops.row_statistics(to(x), eps=1e-5, rms=True, max_blocks=cap)[1],
        "layer_norm": lambda to, cap: ops.layer_norm_replay(to(x), to(weight), to(bias), max_blocks=cap),
        "layer_norm_fp32": lambda to, cap: ops.layer_norm_replay(
            to(x), to(weight.float()), to(bias.float()), max_blocks=cap
        ),
        "rms_norm": lambda to, cap: ops.rms_norm_replay(to(x), to(weight), max_blocks=cap),
        "gelu_tanh": lambda to, cap: ops.bias_gelu_replay(to(x), to(bias), max_blocks=cap),
        "gelu_erf": lambda to, cap: ops.bias_gelu_replay(to(x), to(bias), approximate="none", max_blocks=cap),
        "swiglu": lambda to, cap: ops.swiglu_replay(to(gated), to(gate_bias), max_blocks=cap),
        "swiglu_no_bias": lambda to, cap: ops.swiglu_replay(to(gated), max_blocks=cap),
        "bias_dropout_add": lambda to, cap: ops.bias_dropout_add_replay(
            to(x), to(bias), to(residual), max_blocks=cap, **draw
        ),
    }  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_cuda_has_the_bits_of_the_cpu_twin_under_any_cap(shape: tuple[int, int], dtype: torch.dtype) -> None:
    device = on_gpu()
    for name, run in replays(shape, dtype).items():
        expected = run(lambda tensor: tensor, 0)
        for cap in (0, 1, 3):
            result = run(lambda tensor: tensor.to(device), cap).cpu()
            assert same_bits(result, expected), f"{name} with max_blocks={cap}"


def test_unaligned_storage_is_read_right() -> None:
    storage = random_tensor((1 + 6 * 64,), torch.bfloat16)
    x = storage.to(on_gpu())[1:].view(6, 64)
    assert same_bits(ops.bias_gelu_replay(x).cpu(), ops.bias_gelu_replay(storage[1:].view(6, 64)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1024, 1000, 37])
def test_norms_from_saved_statistics_have_the_bits_of_torch(columns: int, dtype: torch.dtype) -> None:
    device = on_gpu()
    x, weight, bias = (
        random_tensor(shape, dtype, seed).to(device)
        for seed, shape in enumerate([(64, columns), (columns,), (columns,)])
    )
    y, mean, rstd = torch.native_layer_norm(x, [columns], weight, bias, 1e-5)
    assert same_bits(ops.layer_norm_replay(x, weight, bias, mean, rstd), y)
    y, rstd = torch._fused_rms_norm(x, [columns], weight, 1e-6)
    assert same_bits(ops.rms_norm_replay(x, weight, rstd), y)


@pytest.mark.parametrize(
    "name", [name for name in replays((1, 1), torch.float32) if name not in ("mean", "rstd", "rms")]
)
def test_the_cap_on_thread_blocks_is_respected(name: str, tmp_path: pathlib.Path) -> None:
    device = on_gpu()
    run = replays((512, 1024), torch.bfloat16)[name]
    run(lambda tensor: tensor.to(device), 5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(lambda tensor: tensor.to(device), 5)
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    ours = [event for event in events if "overlap_recompute" in event["name"]]
    grids = [event["args"]["grid"] for event in ours if "grid" in event.get("args", {})]
    assert grids
    assert all(blocks[0] * blocks[1] * blocks[2] <= 5 for blocks in grids)


def test_a_replay_goes_to_the_stream_it_is_told() -> None:
    device = on_gpu()
    x = random_tensor((64, 1024), torch.float32).to(device)
    expected = ops.bias_gelu_replay(x)
    side = torch.cuda.Stream()
    out = torch.zeros_like(x)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
    ops.bias_gelu_replay(x, out=out, stream=side.cuda_stream)
    assert not side.query()
    side.synchronize()
    assert torch.equal(out, expected)
