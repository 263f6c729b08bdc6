"""What a GPU test of `overlap_recompute.ops` needs, and why it is skipped where that is missing."""

import pytest
import torch

from overlap_recompute import ops

BUILD = ops.build_info()


def missing() -> str:
    """Empty where CUDA tests of the extension can run."""
    if not torch.cuda.is_available():
        return "no CUDA device, or a torch without CUDA"
    if not BUILD.cuda_version:
        return BUILD.lines()[-1]
    return "" if BUILD.cuda_devices else "the extension finds no CUDA device, though torch does"


gpu_marks = [pytest.mark.gpu, pytest.mark.skipif(bool(missing()), reason=missing())]


def on_gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def spin_ms(milliseconds: float) -> None:
    """Keeps the current stream busy for at least about that long (the clock may run slower than 2 GHz)."""
    torch.cuda._sleep(int(milliseconds * 2e6))
