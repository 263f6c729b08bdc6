"""Weight gradients of row-parallel linears that wait for a communication to hide behind.

The gradient of a column-parallel weight is computed while the all-reduce of its input's gradient is in flight. A
row-parallel linear communicates nothing in backward, so its weight gradient delays the next all-reduce, although nobody
waits for it. Here it is put off until that all-reduce is on its way:

stock   comp: | fc2 dgrad | fc2 wgrad | act_bwd | fc1 dgrad | fc1 wgrad .......... |
here    comp: | fc2 dgrad | act_bwd | fc1 dgrad | fc1 wgrad  fc2 wgrad ..... |
        comm:                                   | all_reduce ............... |

The same products of the same tensors, so the same bits. Until then the linear's input stays in memory.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel import layers as upstream
from torch import Tensor, nn
from torch.autograd import Variable

LinearForward = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """What a weight gradient is computed from."""

    linear: Any
    inputs: Tensor
    output_gradient: Tensor


class DelayedGradients:
    """Weight gradients that were put off, in the order of their linears' backward passes.

    Args:
        is_active: whether to put off at all: within training steps.
    """

    __slots__ = ("_is_active", "_pending")

    def __init__(self, is_active: Callable[[], bool]) -> None:
        self._is_active = is_active
        self._pending: deque[_Pending] = deque()

    def forward_of(self, linear: Any) -> LinearForward:
        """What stands in for `_forward_impl` of a `RowParallelLinear`, with its parameters."""
        stock: LinearForward = linear._forward_impl

        def forward(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
            if not (self._is_active() and torch.is_grad_enabled() and weight.requires_grad):
                return stock(input, weight, *args, **options)
            output: Tensor = _WeightGradientLater.apply(input, weight.detach(), linear, self)
            return output

        return forward

    def add(self, linear: nn.Module, inputs: Tensor, output_gradient: Tensor) -> None:
        """Put one off; at the latest it is computed at the end of this backward pass."""
        if not self._pending:
            Variable._execution_engine.queue_callback(self.compute)
        self._pending.append(_Pending(linear=linear, inputs=inputs, output_gradient=output_gradient))

    def compute(self) -> None:
        """Compute all that were put off, and hand them on as autograd does: to gradient hooks, and into buffers."""
        while self._pending:
            pending = self._pending.popleft()
            gradient = _weight_gradient(pending)
            if gradient is None:
                continue
            weight = pending.linear.weight
            with torch.enable_grad():
                leaf_view = weight.view_as(weight)
            torch.autograd.backward(leaf_view, gradient)

    def forget(self) -> None:
        """Drop what a step that failed has left."""
        self._pending.clear()


class _WeightGradientLater(torch.autograd.Function):
    """`input @ weight.t()`, whose backward pass computes the gradient of the input only."""

    @staticmethod
    @upstream.custom_fwd
    def forward(ctx: Any, input: Tensor, weight: Tensor, linear: nn.Module, delayed: DelayedGradients) -> Tensor:
        """`weight`: that of `linear`, detached, so that autograd expects no gradient of it."""
        ctx.save_for_backward(input, weight)
        ctx.linear, ctx.delayed = linear, delayed
        return torch.matmul(input, weight.t())

    @staticmethod
    @upstream.custom_bwd
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None, None, None]:
        input, weight = ctx.saved_tensors
        ctx.delayed.add(ctx.linear, input, output_gradient)
        return output_gradient.matmul(weight), None, None, None


def _weight_gradient(pending: _Pending) -> Tensor | None:
    """As `LinearWithGradAccumulationAndAsyncCommunication.backward` computes it; None: it is where it belongs."""
    weight = pending.linear.weight
    output_gradient, inputs = upstream.prepare_input_tensors_for_wgrad_compute(pending.output_gradient, pending.inputs)
    if not (pending.linear.gradient_accumulation_fusion and hasattr(weight, "main_grad")):
        product: Tensor = output_gradient.t().matmul(inputs)
        return product
    kernels = upstream.fused_weight_gradient_mlp_cuda
    in_fp32 = weight.main_grad.dtype == torch.float32
    accumulate = kernels.wgrad_gemm_accum_fp32 if in_fp32 else kernels.wgrad_gemm_accum_fp16
    accumulate(inputs, output_gradient, weight.main_grad)
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    return torch.empty_like(weight)  # for the hooks of data parallelism, which do not read it
