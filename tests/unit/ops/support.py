"""What the tests of `overlap_recompute.ops` share."""

import shutil

import pytest
import torch

from overlap_recompute import ops
from overlap_recompute.ops import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COMPILERS = ("c++", "g++", "clang++")

BUILD = ops.build_info()
needs_extension = pytest.mark.skipif(not BUILD.extension, reason="; ".join(BUILD.lines()))


def instruction_sets() -> list[str]:
    """Those of this build that this processor has."""
    return [name for name in ("generic", "avx2", "avx512") if runs(name)]


def runs(instruction_set: str) -> bool:
    if native.extension is None:
        return False
    target = native.extension.Target(-1, 0, 0, instruction_set)
    try:
        native.extension.swiglu(target, 0, 0, 0, 0, 0, 0)
    except ValueError:
        return False
    return True


def compiler() -> str | None:
    """A C++ compiler, if there is one."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def has_compiler() -> bool:
    return compiler() is not None


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ulps(value: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Distance of an fp32 value from an fp64 one, in units in the last place of fp32."""
    unit = torch.exp2(torch.floor(torch.log2(exact.abs().clamp_min(2.0**-126))) - 23)
    return (value.double() - exact).abs() / unit


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal bit for bit, where a NaN equals any NaN and 0 differs from -0."""
    integer = {2: torch.int16, 4: torch.int32}[left.element_size()]
    both_nan = left.isnan() & right.isnan()
    return left.dtype == right.dtype and bool(((left.view(integer) == right.view(integer)) | both_nan).all())
