"""Two methods of torch.Tensor that answer differently when, and only when, megatron.core calls them.

On the CPU platform `Tensor.cuda()` returns the tensor itself, and `Tensor.type()` reports a CPU tensor under the CUDA
name that megatron-core's optimizers look for ('torch.cuda.FloatTensor'; megatron/core/optimizer/optimizer.py 0.16.1).
Both are methods of every tensor, out of reach of the facade; the calling module decides which answer is given.
"""

import functools
import sys
from typing import Any

import torch


def _called_by_megatron_core() -> bool:
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return caller == "megatron.core" or caller.startswith("megatron.core.")


def replace_tensor_methods() -> None:
    """Replace `Tensor.cuda` and `Tensor.type` (once per process; later calls change nothing)."""
    stock_cuda, stock_type = torch.Tensor.cuda, torch.Tensor.type
    if hasattr(stock_type, "__wrapped__"):
        return

    @functools.wraps(stock_cuda)
    def cuda(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return self if _called_by_megatron_core() else stock_cuda(self, *args, **options)

    @functools.wraps(stock_type)
    def type_(self: torch.Tensor, *args: Any, **options: Any) -> Any:
        answer = stock_type(self, *args, **options)
        if isinstance(answer, str) and not self.is_cuda and _called_by_megatron_core():
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    torch.Tensor.cuda = cuda  # type: ignore[assignment, method-assign]
    torch.Tensor.type = type_  # type: ignore[assignment, method-assign]
