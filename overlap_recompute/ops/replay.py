"""Replays of memory-bound units: forwards only, no autograd, in the caller's stream, under a cap on thread blocks.

Each function runs the extension's kernel (CUDA, or its CPU twin), or torch where there is no extension. All compute in
fp32 and round once to the dtype of the input. docs/extension.md has the table of what is bit-identical to what.

Common arguments:
    out: contiguous tensor for the result; left out, one is allocated from the pool of torch's current stream.
    max_blocks: most thread blocks that the CUDA kernel may use, 0 for no cap, so that a collective in flight keeps its
        multiprocessors. The CPU twin runs on the calling thread, torch as it likes.
    stream: handle of the CUDA stream to launch on (`torch.cuda.Stream.cuda_stream`); left out, torch's current one.

Errors: `OperandError` (a `UserError`) where an operand's shape, dtype, device or layout does not fit.
"""

import torch

from overlap_recompute.ops import replay_torch
from overlap_recompute.ops.native import extension, has_cuda
from overlap_recompute.ops.operands import (
    DTYPES,
    OperandError,
    check_blocks,
    check_input,
    check_like,
    check_output,
    check_vector,
)

GELU_FORMS = {"tanh": 0, "none": 1}
PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _native(x: torch.Tensor) -> bool:
    """Whether the extension can take x: subclasses (fake tensors) and other devices go to torch."""
    if extension is None or type(x) not in PLAIN_TENSORS:
        return False
    return x.device.type == "cpu" or (x.device.type == "cuda" and has_cuda)


def _target(x: torch.Tensor, stream: int | None, max_blocks: int, instruction_set: str = "") -> object:
    """Where the extension runs; the CPU is device -1."""
    assert extension is not None
    if x.device.type == "cpu":
        return extension.Target(-1, 0, 0, instruction_set)
    handle = torch.cuda.current_stream(x.device).cuda_stream if stream is None else stream
    return extension.Target(x.device.index, handle, max_blocks, "")


@torch.no_grad()
def row_statistics(
    x: torch.Tensor, *, eps: float, rms: bool = False, max_blocks: int = 0, stream: int | None = None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Mean and reciprocal standard deviation of each row of x: [..., columns].

    Returns:
        mean: fp32 [rows], or None with `rms`; rstd: fp32 [rows]. Two passes (the variance is that of x - mean), summed
        in an order that does not depend on the device: the same bits on CPU and CUDA, not those of torch.
    """
    rows, columns = check_input("x", x)
    check_blocks(max_blocks)
    if not _native(x):
        return replay_torch.row_statistics(x, eps=eps, rms=rms)
    assert extension is not None
    mean = None if rms else torch.empty(rows, dtype=torch.float32, device=x.device)
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    target = _target(x, stream, max_blocks)
    extension.row_statistics(target, DTYPES[x.dtype], _address(x), _address(mean), _address(rstd), rows, columns, eps)
    return mean, rstd


def _normalize(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
    *,
    max_blocks: int,
    out: torch.Tensor | None,
    stream: int | None,
) -> torch.Tensor:
    rows, columns = check_input("x", x)
    check_blocks(max_blocks)
    parameters = (x.dtype, torch.float32)
    check_vector("weight", weight, columns, x, parameters)
    check_vector("bias", bias, columns, x, parameters if weight is None else (weight.dtype,))
    check_vector("mean", mean, rows, x, (torch.float32,))
    check_vector("rstd", rstd, rows, x, (torch.float32,))
    out = check_output(out, tuple(x.shape), x)
    if not _native(x):
        return out.copy_(replay_torch.normalize(x, weight, bias, mean, rstd))
    assert extension is not None
    given = weight if weight is not None else bias
    parameter_dtype = DTYPES[x.dtype if given is None else given.dtype]
    addresses = (_address(tensor) for tensor in (x, weight, bias, mean, rstd, out))
    extension.normalize(_target(x, stream, max_blocks), DTYPES[x.dtype], parameter_dtype, *addresses, rows, columns)
    return out


@torch.no_grad()
def layer_norm_replay(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
    rstd: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    max_blocks: int = 0,
    out: torch.Tensor | None = None,
    stream: int | None = None,
) -> torch.Tensor:
    """LayerNorm over the last dimension, from statistics that the forward saved.

    Args:
        x: [..., columns], contiguous.
        weight, bias: [columns] of x's dtype or fp32 (both alike), or None.
        mean, rstd: fp32, one element a row (any shape), as `torch.native_layer_norm` returns them. Both or neither:
            without them they are computed again (`row_statistics`).
        eps: added to the variance, when computed.

    Returns:
        Like x. With fp32 x and saved statistics the bits of torch's own LayerNorm.
    """
    if (mean is None) != (rstd is None):
        raise OperandError(
            "one of mean and rstd", "both or neither", "pass what native_layer_norm returned, or neither"
        )
    if rstd is None:
        mean, rstd = row_statistics(x, eps=eps, max_blocks=max_blocks, stream=stream)
    return _normalize(x, weight, bias, mean, rstd, max_blocks=max_blocks, out=out, stream=stream)


@torch.no_grad()
def rms_norm_replay(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    rstd: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    max_blocks: int = 0,
    out: torch.Tensor | None = None,
    stream: int | None = None,
) -> torch.Tensor:
    """RMSNorm over the last dimension: x * rstd * weight.

    Args:
        x: [..., columns], contiguous.
        weight: [columns] of x's dtype or fp32, or None.
        rstd: fp32, one element a row: 1 / sqrt(mean(x^2) + eps); without it, it is computed again.

    Returns:
        Like x. With a saved rstd the bits of torch's own RMSNorm, in every dtype.
    """
    if rstd is None:
        _, rstd = row_statistics(x, eps=eps, rms=True, max_blocks=max_blocks, stream=stream)
    return _normalize(x, weight, None, None, rstd, max_blocks=max_blocks, out=out, stream=stream)


@torch.no_grad()
def bias_gelu_replay(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    approximate: str = "tanh",
    max_blocks: int = 0,
    out: torch.Tensor | None = None,
    stream: int | None = None,
) -> torch.Tensor:
    """gelu(x + bias).

    Args:
        x: [..., columns], contiguous; bias: [columns] of x's dtype, or None.
        approximate: "tanh" (Megatron-Core's fused form, constants of fused_bias_gelu.py) or "none" (erf).

    Returns:
        Like x.
    """
    rows, columns = check_input("x", x)
    check_blocks(max_blocks)
    check_vector("bias", bias, columns, x, (x.dtype,))
    if approximate not in GELU_FORMS:
        raise OperandError(f"approximate {approximate!r}", "'tanh' or 'none'", "pass one of them")
    out = check_output(out, tuple(x.shape), x)
    if not _native(x):
        return out.copy_(replay_torch.bias_gelu(x, bias, approximate))
    assert extension is not None
    form, target = GELU_FORMS[approximate], _target(x, stream, max_blocks)
    extension.bias_gelu(target, DTYPES[x.dtype], form, _address(x), _address(bias), _address(out), rows, columns)
    return out


@torch.no_grad()
def swiglu_replay(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    max_blocks: int = 0,
    out: torch.Tensor | None = None,
    stream: int | None = None,
) -> torch.Tensor:
    """silu(first half) * second half of x + bias.

    Args:
        x: [..., 2 * columns], contiguous; bias: [2 * columns] of x's dtype, or None.

    Returns:
        [..., columns].
    """
    rows, both = check_input("x", x, last=2)
    check_blocks(max_blocks)
    check_vector("bias", bias, both, x, (x.dtype,))
    out = check_output(out, (*x.shape[:-1], both // 2), x)
    if not _native(x):
        return out.copy_(replay_torch.swiglu(x, bias))
    assert extension is not None
    target = _target(x, stream, max_blocks)
    extension.swiglu(target, DTYPES[x.dtype], _address(x), _address(bias), _address(out), rows, both // 2)
    return out


@torch.no_grad()
def bias_dropout_add_replay(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    *,
    p: float,
    seed: int,
    offset: int,
    max_blocks: int = 0,
    out: torch.Tensor | None = None,
    stream: int | None = None,
) -> torch.Tensor:
    """residual + dropout(x + bias), with the mask of (seed, offset): the forward must have drawn it here too.

    Args:
        x, residual: [..., columns], contiguous, alike; bias: [columns] of x's dtype, or None.
        p: probability of dropping an element, 0 <= p < 1; those kept are scaled by 1 / (1 - p).
        seed, offset: of the Philox generator (csrc/math/philox.h), 0 .. 2^64 - 1. Each call of a step takes another
            offset; the same pair gives the same mask on any device and with any cap.

    Returns:
        Like x. A dropped element adds exactly 0, also where x is not finite.
    """
    rows, columns = check_input("x", x)
    check_blocks(max_blocks)
    check_vector("bias", bias, columns, x, (x.dtype,))
    check_like("residual", residual, "x", x)
    if not 0.0 <= p < 1.0:
        raise OperandError(f"p {p}", "a probability of at least 0 and below 1", "pass the dropout of the model")
    if not (0 <= seed < 1 << 64 and 0 <= offset < 1 << 64):
        raise OperandError(
            f"seed {seed}, offset {offset}", "two numbers of 64 bits, not negative", "reduce them mod 2^64"
        )
    threshold, scale = min(round(p * (1 << 32)), (1 << 32) - 1), 1.0 / (1.0 - p)
    out = check_output(out, tuple(x.shape), x)
    draw = {"threshold": threshold, "scale": scale, "seed": seed, "offset": offset}
    if not _native(x):
        return out.copy_(replay_torch.bias_dropout_add(x, bias, residual, **draw))  # type: ignore[arg-type]
    assert extension is not None
    addresses = (_address(tensor) for tensor in (x, bias, residual, out))
    target = _target(x, stream, max_blocks)
    extension.bias_dropout_add(target, DTYPES[x.dtype], *addresses, rows, columns, threshold, scale, seed, offset)
    return out
