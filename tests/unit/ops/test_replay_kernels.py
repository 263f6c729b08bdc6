"""CPU twins of the replay kernels: bits where claimed, units in the last place elsewhere (docs/extension.md)."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overlap_recompute import ops
from overlap_recompute.ops import replay, replay_torch
from tests.unit.ops.support import DTYPES, instruction_sets, needs_extension, random_tensor, same_bits, ulps

pytestmark = needs_extension

SIZES = st.sampled_from((0, 1, 2, 3, 4, 7, 8, 15, 17, 31, 64, 129, 511, 512, 513, 1000, 1025))
SHAPES = st.tuples(st.integers(0, 5), SIZES)
ANY_DTYPE = st.sampled_from(DTYPES)
# torch rounds as we do where its own kernels are vectorized with fused multiply-add.
TORCH_IS_FUSED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def replays(shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Callable[[], torch.Tensor]]:
    """Every kernel, on the same operands for the same arguments."""
    rows, columns = shape
    x, residual = random_tensor(shape, dtype), random_tensor(shape, dtype, 1)
    weight, bias = random_tensor((columns,), dtype, 2), random_tensor((columns,), dtype, 3)
    gated, gate_bias = random_tensor((rows, 2 * columns), dtype, 4), random_tensor((2 * columns,), dtype, 5)
    draw = {"p": 0.3, "seed": 2**63 + 5, "offset": 2**40 + 7}
    return {
        "layer_norm": functools.partial(ops.layer_norm_replay, x, weight, bias),
        "layer_norm_fp32_weight": functools.partial(ops.layer_norm_replay, x, weight.float(), bias.float()),
        "rms_norm": functools.partial(ops.rms_norm_replay, x, weight),
        "gelu_tanh": functools.partial(ops.bias_gelu_replay, x, bias),
        "gelu_erf": functools.partial(ops.bias_gelu_replay, x, bias, approximate="none"),
        "swiglu": functools.partial(ops.swiglu_replay, gated, gate_bias),
        "swiglu_no_bias": functools.partial(ops.swiglu_replay, gated),
        "bias_dropout_add": functools.partial(ops.bias_dropout_add_replay, x, bias, residual, **draw),
    }


@pytest.mark.skipif(len(instruction_sets()) < 2, reason="this processor runs the generic code only")
@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, dtype=ANY_DTYPE)
def test_every_instruction_set_computes_the_same_bits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    target = replay._target
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for name in instruction_sets():
            patch.setattr(replay, "_target", functools.partial(target, instruction_set=name))
            results.append({kernel: run() for kernel, run in replays(shape, dtype).items()})
    for other in results[1:]:
        assert all(same_bits(results[0][kernel], other[kernel]) for kernel in other)


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, dtype=st.sampled_from((torch.bfloat16, torch.float16)))
def test_sixteen_bits_are_fp32_rounded_once(shape: tuple[int, int], dtype: torch.dtype) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda shape, generator: random_bits(shape, dtype, generator))
        sixteen, full = replays(shape, dtype), replays(shape, torch.float32)
        assert all(same_bits(sixteen[kernel](), full[kernel]().to(dtype)) for kernel in sixteen)


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """fp32 values that the 16-bit type holds exactly."""
    return torch.empty(shape).normal_(generator=generator).to(dtype).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("instruction_set", instruction_sets())
def test_conversions_agree_with_torch_on_every_bit_pattern(
    dtype: torch.dtype, instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_target", functools.partial(replay._target, instruction_set=instruction_set))
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).reshape(1, -1)
    one = torch.ones(1)
    assert same_bits(ops.rms_norm_replay(every, None, one), every)  # there and back
    near = every.float().nan_to_num(0.0, 0.0, 0.0)
    scale = 1.0 + torch.linspace(-0.01, 0.01, near.numel())
    assert same_bits(ops.rms_norm_replay(every, scale, one), (every.float() * scale).to(dtype))


@pytest.mark.skipif(not TORCH_IS_FUSED, reason="torch's own kernels are not vectorized here")
@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(st.integers(1, 5), SIZES.filter(bool)), affine=st.booleans())
def test_layer_norm_has_the_bits_of_torch(shape: tuple[int, int], affine: bool) -> None:
    x = random_tensor(shape, torch.float32) * 3 + 1
    weight = random_tensor(shape[1:], torch.float32, 1) if affine else None
    bias = random_tensor(shape[1:], torch.float32, 2) if affine else None
    y, mean, rstd = torch.native_layer_norm(x, shape[1:], weight, bias, 1e-5)
    assert torch.equal(ops.layer_norm_replay(x, weight, bias, mean, rstd), y)


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(st.integers(1, 5), SIZES.filter(bool)), dtype=ANY_DTYPE)
def test_rms_norm_has_the_bits_of_torch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = random_tensor(shape, dtype), random_tensor(shape[1:], dtype, 1)
    rstd = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    expected = torch.nn.functional.rms_norm(x, shape[1:], weight, 1e-6)
    assert torch.equal(ops.rms_norm_replay(x, weight, rstd), expected)


def fixed_order_sum(row: np.ndarray) -> np.float32:
    """csrc/kernels/row_formulas.h, NOTE [ order of a row sum ], in numpy: only elementwise fp32 additions."""
    padded = np.zeros(-(-max(len(row), 1) // 1024) * 1024, dtype=np.float32)
    padded[: len(row)] = row
    sums = np.zeros(1024, dtype=np.float32)
    for part in padded.reshape(-1, 1024):
        sums = sums + part
    four = sums.reshape(256, 4)
    threads = (four[:, 0] + four[:, 1]) + (four[:, 2] + four[:, 3])
    warps = threads.reshape(8, 32)
    for distance in (16, 8, 4, 2, 1):
        warps = warps[:, :distance] + warps[:, distance : 2 * distance]
    total = warps[:, 0]
    for distance in (4, 2, 1):
        total = total[:distance] + total[distance : 2 * distance]
    return np.float32(total[0])


@pytest.mark.parametrize("columns", [1, 5, 1000, 1024, 1025, 5000])
def test_row_sums_follow_the_documented_order(columns: int) -> None:
    x = random_tensor((3, columns), torch.float32) + 0.5
    mean, rstd = ops.row_statistics(x, eps=1e-5)
    assert mean is not None
    expected = [fixed_order_sum(row) / np.float32(columns) for row in x.numpy()]
    assert torch.equal(mean, torch.tensor(np.array(expected)))
    exact = x.double()
    variance = (exact - exact.mean(-1, keepdim=True)).square().mean(-1)
    torch.testing.assert_close(rstd.double(), (variance + 1e-5).rsqrt(), rtol=2e-6, atol=0)
    _, rms = ops.row_statistics(x, eps=1e-5, rms=True)
    torch.testing.assert_close(rms.double(), (exact.square().mean(-1) + 1e-5).rsqrt(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_without_saved_statistics_are_close_to_torch(dtype: torch.dtype) -> None:
    x, weight, bias = (random_tensor(shape, dtype, seed) for seed, shape in enumerate([(7, 300), (300,), (300,)]))
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    expected = torch.nn.functional.layer_norm(x, (300,), weight, bias, 1e-5)
    torch.testing.assert_close(ops.layer_norm_replay(x, weight, bias), expected, rtol=tolerance, atol=tolerance)
    expected = torch.nn.functional.rms_norm(x, (300,), weight, 1e-6)
    torch.testing.assert_close(ops.rms_norm_replay(x, weight, eps=1e-6), expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    """Where the activations are measured: dense around zero, and many magnitudes."""
    small = torch.logspace(-30, 0, 2000)
    return torch.cat((torch.linspace(-12, 12, 200_001), small, -small)).float()


def test_gelu_tanh_is_within_its_documented_error(points: torch.Tensor) -> None:
    exact = points.double()
    sigmoid = torch.sigmoid(2 * 0.7978845608 * exact * (1 + 0.044715 * exact.square()))
    result = ops.bias_gelu_replay(points)
    assert ulps(result, exact * sigmoid)[points > -1].max() < 3.5
    assert ((result.double() - exact * sigmoid).abs() <= 2.5 * 2**-24 * exact.abs()).all()
    assert ((result - replay_torch.bias_gelu(points, None, "tanh")).abs() <= 4 * 2**-24 * points.abs()).all()


def test_gelu_erf_is_within_its_documented_error(points: torch.Tensor) -> None:
    exact = points.double()
    result = ops.bias_gelu_replay(points, approximate="none")
    expected = 0.5 * exact * torch.special.erfc(-exact / 2**0.5)
    assert ulps(result, expected).max() < 10
    assert ((result.double() - expected).abs() <= 3 * 2**-24 * exact.abs()).all()
    assert ((result - replay_torch.bias_gelu(points, None, "none")).abs() <= 7 * 2**-24 * points.abs()).all()


def test_silu_is_within_its_documented_error(points: torch.Tensor) -> None:
    gated = torch.stack((points, torch.ones_like(points)), dim=-1)
    result = ops.swiglu_replay(gated).squeeze(-1)
    exact = points.double()
    assert ulps(result, exact * torch.sigmoid(exact)).max() < 2.5
    assert ulps(result, replay_torch.swiglu(gated, None).squeeze(-1).double()).max() <= 3


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_activations_at_the_ends_of_the_range(approximate: str) -> None:
    ends = torch.tensor([0.0, -0.0, 1e30, -1e30, float("inf"), float("-inf"), float("nan"), 88.8, -88.8, 1e-45])
    result = ops.bias_gelu_replay(ends, approximate=approximate)
    expected = torch.nn.functional.gelu(ends, approximate=approximate)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-37, equal_nan=True)
    gated = torch.stack((ends, torch.ones_like(ends)), dim=-1)
    expected = torch.nn.functional.silu(ends)
    torch.testing.assert_close(ops.swiglu_replay(gated).squeeze(-1), expected, rtol=1e-6, atol=1e-37, equal_nan=True)


# Known answers of Philox 4x32-10 from the authors' Random123 distribution: (seed, offset, position) -> words.
KNOWN_ANSWERS = [
    (0, 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        0x299F31D0A4093822,
        0x85A308D3243F6A88,
        0x0370734413198A2E,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def test_philox_gives_the_known_answers() -> None:
    for seed, offset, first, expected in KNOWN_ANSWERS:
        words = replay_torch.philox_words(4, seed=seed, offset=offset, device=torch.device("cpu"), first=first)
        assert tuple(words.tolist()) == expected


@settings(max_examples=40, deadline=None)
@given(
    shape=SHAPES,
    dtype=ANY_DTYPE,
    p=st.floats(0, 0.99),
    seed=st.integers(0, 2**64 - 1),
    offset=st.integers(0, 2**64 - 1),
    biased=st.booleans(),
)
def test_dropout_has_the_bits_of_the_torch_reference(
    shape: tuple[int, int], dtype: torch.dtype, p: float, seed: int, offset: int, biased: bool
) -> None:
    x, residual = random_tensor(shape, dtype), random_tensor(shape, dtype, 1)
    bias = random_tensor(shape[1:], dtype, 2) if biased else None
    result = ops.bias_dropout_add_replay(x, bias, residual, p=p, seed=seed, offset=offset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "_native", lambda x: False)
        expected = ops.bias_dropout_add_replay(x, bias, residual, p=p, seed=seed, offset=offset)
    assert same_bits(result, expected)


def test_dropout_drops_the_share_it_is_told_to() -> None:
    x, zero = torch.ones(1000, 100), torch.zeros(1000, 100)
    masks = [ops.bias_dropout_add_replay(x, None, zero, p=0.25, seed=1, offset=offset) for offset in (0, 1)]
    for mask in masks:
        assert abs((mask == 0).double().mean().item() - 0.25) < 0.005  # 3.6 standard deviations
        assert torch.equal(mask[mask != 0], torch.full_like(mask[mask != 0], 4 / 3))
    assert not torch.equal(*masks)
    not_finite = torch.full((4, 4), float("inf"))
    assert not ops.bias_dropout_add_replay(not_finite, None, torch.zeros(4, 4), p=0.9, seed=1, offset=0).isnan().any()


def test_unaligned_storage_is_read_right() -> None:
    storage = random_tensor((1 + 6 * 64,), torch.bfloat16)
    x = storage[1:].view(6, 64)
    assert x.data_ptr() % 4 == 2
    assert same_bits(ops.bias_gelu_replay(x), ops.bias_gelu_replay(x.clone()))
