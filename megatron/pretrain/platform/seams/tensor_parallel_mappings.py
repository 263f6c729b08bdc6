"""Hooks megatron/core/tensor_parallel/mappings.py of megatron-core 0.16.1."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from megatron.pretrain.platform.seam import Expected, Seam

REDUCTIONS = {
    "reduce_from_tensor_model_parallel_region": ("input_", "group"),
    "reduce_scatter_to_sequence_parallel_region": ("input_", "group", "input_split_sizes", "use_global_buffer"),
}
"""Functions that have nothing to do over one rank, and their parameters."""


def _without_one_rank(module: ModuleType, stock: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(stock)
    def reduce(input_: torch.Tensor, group: Any = None, *args: Any, **options: Any) -> torch.Tensor:
        group = module.get_tensor_model_parallel_group_if_none(group)
        return input_ if group.size() == 1 else stock(input_, group, *args, **options)

    return reduce


def _skip_reductions_over_one_rank(module: ModuleType) -> None:
    for name in REDUCTIONS:
        stock = getattr(module, name)
        if not hasattr(stock, "__wrapped__"):
            setattr(module, name, _without_one_rank(module, stock))


REDUCTIONS_OVER_ONE_RANK = Seam(
    module="megatron.core.tensor_parallel.mappings",
    # Over one rank the autograd function returns its input as it came. Autograd makes that a view which must not be
    # changed in place, and an expert adds its bias in place (megatron/core/transformer/mlp.py).
    purpose="experts with a bias on one rank fail with 'is a view and is being modified inplace'",
    expects=tuple(Expected(name=name, parameters=parameters) for name, parameters in REDUCTIONS.items()),
    adjust=_skip_reductions_over_one_rank,
)
