"""Weight gradients that wait for a communication to hide behind.

The gradient of a column-parallel weight is computed while the all-reduce of its input's gradient is in flight, and
added to the gradient buffer after that. A row-parallel linear communicates nothing in backward, so its weight gradient
delays the next all-reduce, although nobody waits for it. Here it is put off until that all-reduce is on its way, and
all are added to the buffer then:

stock   comp: | fc2 dgrad | fc2 wgrad | add | act_bwd | fc1 dgrad | fc1 wgrad ............... | add |
here    comp: | fc2 dgrad | act_bwd | fc1 dgrad | fc2 wgrad | add | fc1 wgrad | add | ....... |
        comm:                                   | all_reduce ................................ |

The same products of the same tensors, so the same bits. Until then the linear's input stays in memory.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel import layers as upstream
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed import ProcessGroup

LinearForward = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """What a weight gradient is computed from."""

    linear: Any
    inputs: Tensor
    """[tokens, input features]"""
    output_gradient: Tensor
    """[tokens, output features]"""


class DelayedGradients:
    """Weight gradients that were put off, in the order of their linears' backward passes.

    Args:
        is_active: whether to put off at all: within training steps.
    """

    __slots__ = ("_is_active", "_pending", "_spent_ns")

    def __init__(self, is_active: Callable[[], bool]) -> None:
        self._is_active = is_active
        self._pending: deque[_Pending] = deque()
        self._spent_ns = 0

    def forward_of(self, linear: Any) -> LinearForward:
        """What stands in for `_forward_impl` of a linear that gathers nothing, with its parameters."""
        stock: LinearForward = linear._forward_impl

        def forward(input: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
            if not (self._is_active() and torch.is_grad_enabled()):
                return stock(input, weight, bias=bias, **options)
            group = options["tp_group"] if options["allreduce_dgrad"] else None
            output: Tensor = _WeightGradientLater.apply(input, weight.detach(), bias, linear, group, self)
            return output

        return forward

    def add(self, linear: nn.Module, inputs: Tensor, output_gradient: Tensor) -> None:
        """Put one off; at the latest it is computed at the end of this backward pass."""
        if not self._pending:
            Variable._execution_engine.queue_callback(self.compute)
        self._pending.append(_Pending(linear=linear, inputs=inputs, output_gradient=output_gradient))

    def compute(self) -> None:
        """Compute all that were put off, and hand them on as autograd does: to gradient hooks, and into buffers."""
        if not self._pending:
            return
        begin_ns = time.perf_counter_ns()
        while self._pending:
            pending = self._pending.popleft()
            gradient = _weight_gradient(pending)
            if gradient is None:
                continue
            weight = pending.linear.weight
            with torch.enable_grad():
                leaf_view = weight.view_as(weight)
            torch.autograd.backward(leaf_view, gradient)
        self._spent_ns += time.perf_counter_ns() - begin_ns

    def take_spent_ns(self) -> int:
        """Time that computing took since the last call."""
        spent_ns, self._spent_ns = self._spent_ns, 0
        return spent_ns

    def forget(self) -> None:
        """Drop what a step that failed has left."""
        self._pending.clear()


class _WeightGradientLater(torch.autograd.Function):
    """`LinearWithGradAccumulationAndAsyncCommunication` without sequence parallelism, its weight gradient put off."""

    @staticmethod
    @upstream.custom_fwd
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        linear: nn.Module,
        group: ProcessGroup | None,
        delayed: DelayedGradients,
    ) -> Tensor:
        """`weight`: that of `linear`, detached, so that autograd expects no gradient of it."""
        ctx.save_for_backward(input, weight)
        ctx.linear, ctx.group, ctx.delayed, ctx.use_bias = linear, group, delayed, bias is not None
        output = torch.matmul(input, weight.t())
        return output if bias is None else output + bias

    @staticmethod
    @upstream.custom_bwd
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        """`group`: ranks over which the gradient of the input is summed; None: it is not."""
        input, weight = ctx.saved_tensors
        input_gradient = output_gradient.matmul(weight)
        rows, inputs = upstream.prepare_input_tensors_for_wgrad_compute(output_gradient, input)
        ctx.delayed.add(ctx.linear, inputs, rows)
        reduction = None
        if ctx.group is not None:
            # The module's `torch` opens windows: what was put off is computed when this is waited for.
            reduction = upstream.torch.distributed.all_reduce(input_gradient, group=ctx.group, async_op=True)
        bias_gradient = rows.sum(dim=0) if ctx.use_bias else None
        if reduction is not None:
            reduction.wait()
        return input_gradient, None, bias_gradient, None, None, None


def _weight_gradient(pending: _Pending) -> Tensor | None:
    """As upstream computes it; None: it is where it belongs."""
    weight, inputs, output_gradient = pending.linear.weight, pending.inputs, pending.output_gradient
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
