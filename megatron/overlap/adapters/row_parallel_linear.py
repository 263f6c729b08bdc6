"""Hooks RowParallelLinear of megatron/core/tensor_parallel/layers.py of megatron-core 0.16.1."""

from collections.abc import Iterable

from megatron.core.tensor_parallel import layers as upstream
from torch import nn

from megatron.overlap.delayed_gradients import DelayedGradients
from megatron.overlap.replacements import Replacements, require_shape
from megatron.pretrain.platform.seam import Expected

_EXPECTED = (
    Expected(name="RowParallelLinear._forward_impl", parameters=("self", "input", "weight", "args", "kwargs")),
    Expected(name="prepare_input_tensors_for_wgrad_compute", parameters=("grad_output", "all_gathered_input")),
)


def delay_weight_gradients(replacements: Replacements, chunks: Iterable[nn.Module], delayed: DelayedGradients) -> int:
    """Put off the weight gradients of the row-parallel linears between tensor-parallel ranks; returns how many.

    Those of experts stay: behind their backward pass comes no all-reduce of the tensor-parallel group. So does one
    whose weight is used twice in a model (`zero_out_wgrad`), and one without a gradient.

    Raises:
        UserError: megatron-core has another shape here.
    """
    require_shape(upstream, "puts off weight gradients", *_EXPECTED)
    linears = [module for chunk in chunks for module in chunk.modules() if _can_wait(module)]
    for linear in linears:
        replacements.set(linear, "_forward_impl", delayed.forward_of(linear))
    return len(linears)


def _can_wait(module: nn.Module) -> bool:
    if not isinstance(module, upstream.RowParallelLinear) or module.is_expert:
        return False
    weight = module.weight
    return module.tp_group.size() > 1 and weight.requires_grad and not getattr(weight, "zero_out_wgrad", False)
