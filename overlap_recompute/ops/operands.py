"""Checks of what a replay kernel is given, once, at the border; the kernels trust them."""

import torch

from overlap_recompute.plan.errors import UserError

# Numbers shared with csrc/kernels/interface.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class OperandError(UserError):
    """A tensor or number that a replay kernel cannot take."""


def describe(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def check_input(name: str, tensor: torch.Tensor, last: int | None = None) -> tuple[int, int]:
    """Rows and columns (last dimension) of a contiguous activation.

    Args:
        name: of the argument, for the error.
        tensor: [..., columns], contiguous, float32, bfloat16 or float16.
        last: the last dimension must be a multiple of this.

    Raises:
        OperandError: it is none of that.
    """
    if tensor.dtype not in DTYPES:
        raise OperandError(f"{name} {describe(tensor)}", "float32, bfloat16 or float16", "convert it first")
    if tensor.dim() == 0:
        raise OperandError(f"{name} with no dimension", "at least one dimension", "pass a tensor of rows")
    if not tensor.is_contiguous():
        found = f"{name} {describe(tensor)} with strides {tensor.stride()}"
        raise OperandError(found, "a contiguous tensor", f"pass {name}.contiguous()")
    columns = tensor.shape[-1]
    if last and columns % last:
        raise OperandError(
            f"{name} {describe(tensor)}", f"a last dimension that is a multiple of {last}", "pass both halves"
        )
    return (tensor.numel() // columns if columns else 0), columns


def check_like(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """The same shape, dtype and device as another operand, contiguous."""
    same = tensor.dtype == other.dtype and tensor.device == other.device and tensor.shape == other.shape
    if not same or not tensor.is_contiguous():
        found = f"{name} {describe(tensor)}" + ("" if tensor.is_contiguous() else f" with strides {tensor.stride()}")
        raise OperandError(
            found, f"a contiguous tensor like {other_name}: {describe(other)}", f"pass a {name} that fits"
        )


def check_vector(
    name: str, tensor: torch.Tensor | None, length: int, like: torch.Tensor, dtypes: tuple[torch.dtype, ...]
) -> None:
    """`length` contiguous elements (any shape) of one of `dtypes` on the device of `like`; None passes."""
    if tensor is None:
        return
    right = tensor.numel() == length and tensor.dtype in dtypes and tensor.device == like.device
    if not right or not tensor.is_contiguous():
        kinds = " or ".join(str(dtype) for dtype in dtypes)
        expected = f"{length} contiguous elements of {kinds} on {like.device}"
        raise OperandError(f"{name} {describe(tensor)}", expected, f"pass a {name} that fits")


def check_output(out: torch.Tensor | None, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """The caller's output tensor, or a new one from the pool of the current stream."""
    if out is None:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    if tuple(out.shape) != shape or out.dtype != like.dtype or out.device != like.device or not out.is_contiguous():
        expected = f"a contiguous {like.dtype} {list(shape)} on {like.device}"
        raise OperandError(
            f"out {describe(out)} with strides {out.stride()}", expected, "allocate it so, or leave it out"
        )
    return out


def check_blocks(max_blocks: int) -> None:
    if max_blocks < 0:
        raise OperandError(f"max_blocks {max_blocks}", "0 (no cap) or more", "pass the cap of the plan")
