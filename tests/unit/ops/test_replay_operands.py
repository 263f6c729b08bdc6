"""What replay functions refuse, where they fall back to torch, and that `out` is honoured."""

import functools
from collections.abc import Callable

import pytest
import torch

from overlap_recompute import ops
from overlap_recompute.ops import replay
from tests.unit.ops.support import DTYPES, needs_extension, random_tensor

X = random_tensor((4, 6), torch.float32)
ROW = random_tensor((6,), torch.float32)
STATISTIC = torch.ones(4)
DRAW = {"p": 0.1, "seed": 1, "offset": 0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.layer_norm_replay(X.double()), r"x torch.float64 \[4, 6\] on cpu; expected float32, bfloat16"),
        (lambda: ops.layer_norm_replay(X.t()), r"strides \(1, 6\); expected a contiguous tensor; pass x.contiguous"),
        (lambda: ops.layer_norm_replay(torch.tensor(1.0)), "no dimension"),
        (lambda: ops.layer_norm_replay(X, ROW[:5]), r"weight torch.float32 \[5\] on cpu; expected 6 contiguous"),
        (lambda: ops.layer_norm_replay(X, ROW.bfloat16()), "weight torch.bfloat16"),
        (lambda: ops.layer_norm_replay(X.half(), ROW, ROW.half()), "bias torch.float16"),
        (lambda: ops.layer_norm_replay(X, ROW, ROW, STATISTIC), "one of mean and rstd; expected both or neither"),
        (lambda: ops.layer_norm_replay(X, ROW, ROW, STATISTIC, STATISTIC[:3]), "rstd .* expected 4 contiguous"),
        (lambda: ops.rms_norm_replay(X, ROW, STATISTIC.half()), "rstd torch.float16"),
        (lambda: ops.rms_norm_replay(X, ROW, max_blocks=-1), "max_blocks -1"),
        (lambda: ops.rms_norm_replay(X, ROW, out=torch.empty(4, 5)), r"out .* a contiguous torch.float32 \[4, 6\]"),
        (lambda: ops.bias_gelu_replay(X, approximate="sigmoid"), "approximate 'sigmoid'; expected 'tanh' or 'none'"),
        (lambda: ops.swiglu_replay(X[:, :5].contiguous()), "a last dimension that is a multiple of 2"),
        (lambda: ops.bias_dropout_add_replay(X, None, X.half(), **DRAW), "a contiguous tensor like x: torch.float32"),
        (lambda: ops.bias_dropout_add_replay(X, None, X, p=1.0, seed=0, offset=0), "p 1.0; expected a probability"),
        (lambda: ops.bias_dropout_add_replay(X, None, X, p=0.1, seed=-1, offset=0), "two numbers of 64 bits"),
    ],
)  # fmt: skip
def test_an_operand_that_does_not_fit_is_refused(call: Callable[[], torch.Tensor], message: str) -> None:
    with pytest.raises(ops.OperandError, match=message):
        call()


REPLAYS: dict[str, Callable[..., torch.Tensor]] = {
    "layer_norm": lambda x, y, row: ops.layer_norm_replay(x, row, row),
    "layer_norm_bias_only": lambda x, y, row: ops.layer_norm_replay(x, None, row),
    "rms_norm": lambda x, y, row: ops.rms_norm_replay(x, row),
    "gelu_tanh": lambda x, y, row: ops.bias_gelu_replay(x, row),
    "gelu_erf": lambda x, y, row: ops.bias_gelu_replay(x, row, approximate="none"),
    "swiglu": lambda x, y, row: ops.swiglu_replay(x, row),
    "bias_dropout_add": lambda x, y, row: ops.bias_dropout_add_replay(x, row, y, **DRAW),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REPLAYS)
def test_the_torch_fallback_agrees(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extension this compares torch with itself, and shows that the fallback runs."""
    operands = [random_tensor(shape, dtype, seed) for seed, shape in enumerate([(3, 5, 34), (3, 5, 34), (34,)])]
    result = REPLAYS[name](*operands)
    monkeypatch.setattr(replay, "extension", None)
    fallback = REPLAYS[name](*operands)
    assert fallback.shape == result.shape == (3, 5, 17 if name == "swiglu" else 34)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(fallback, result, rtol=tolerance, atol=tolerance)


class Subclass(torch.Tensor):
    """Stands for fake and wrapped tensors, whose address is not that of their values."""


@needs_extension
def test_tensor_subclasses_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ops.swiglu_replay(X)
    monkeypatch.setattr(replay, "_target", None)  # the extension would fail
    torch.testing.assert_close(ops.swiglu_replay(X.as_subclass(Subclass)).as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("native", [True, False])
def test_out_is_written_and_returned_and_nothing_requires_grad(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(replay, "extension", None)
    out = torch.full_like(X, float("nan"))
    weight = torch.nn.Parameter(ROW.clone())
    result = ops.rms_norm_replay(X, weight, out=out)
    assert result is out
    assert not out.isnan().any()
    assert not result.requires_grad


@needs_extension
def test_the_extension_runs_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the tests above: the native path is the extension's, not torch's."""
    monkeypatch.setattr(replay, "replay_torch", functools.partial)  # any use of it would fail
    for run in REPLAYS.values():
        run(X, X, ROW)
