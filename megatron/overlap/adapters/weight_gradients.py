"""Hooks the linears of megatron/core/tensor_parallel/layers.py of megatron-core 0.16.1."""

from collections.abc import Iterable

from megatron.core.tensor_parallel import layers as upstream
from torch import nn

from megatron.overlap.delayed_gradients import DelayedGradients
from megatron.overlap.replacements import Replacements, require_shape
from megatron.pretrain.platform.seam import Expected

_FORWARD = ("self", "input", "weight", "args", "kwargs")
_EXPECTED = (
    Expected(name="RowParallelLinear._forward_impl", parameters=_FORWARD),
    Expected(name="ColumnParallelLinear._forward_impl", parameters=_FORWARD),
    Expected(name="prepare_input_tensors_for_wgrad_compute", parameters=("grad_output", "all_gathered_input")),
)


def delay_weight_gradients(replacements: Replacements, chunks: Iterable[nn.Module], delayed: DelayedGradients) -> int:
    """Put off the weight gradients of linears between tensor-parallel ranks; returns of how many.

    Left as they are: linears of experts, behind whose backward pass comes no all-reduce of the tensor-parallel group;
    column-parallel ones that gather a sequence; a weight that is frozen, shared with another module, or used twice
    (`zero_out_wgrad`).

    Raises:
        UserError: megatron-core has another shape here.
    """
    require_shape(upstream, "puts off weight gradients", *_EXPECTED)
    linears = [module for chunk in chunks for module in chunk.modules() if _can_wait(module)]
    for linear in linears:
        replacements.set(linear, "_forward_impl", delayed.forward_of(linear))
    return len(linears)


def _can_wait(module: nn.Module) -> bool:
    if isinstance(module, upstream.ColumnParallelLinear):
        reduces = module.allreduce_dgrad and not module.config.defer_embedding_wgrad_compute
    elif isinstance(module, upstream.RowParallelLinear):
        reduces = module.tp_group.size() > 1
    else:
        return False
    weight = module.weight
    is_own = weight is not None and weight.requires_grad and not getattr(weight, "shared", False)
    return reduces and is_own and not module.is_expert and not getattr(weight, "zero_out_wgrad", False)
