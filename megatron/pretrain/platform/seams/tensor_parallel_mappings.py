"""Hooks megatron/core/tensor_parallel/mappings.py of megatron-core 0.16.1."""

import functools
from types import ModuleType
from typing import Any

import torch

from megatron.pretrain.platform.seam import Expected, Seam


def _skip_a_reduction_over_one_rank(module: ModuleType) -> None:
    stock = module.reduce_from_tensor_model_parallel_region
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def reduce(input_: torch.Tensor, group: Any = None) -> torch.Tensor:
        group = module.get_tensor_model_parallel_group_if_none(group)
        return input_ if group.size() == 1 else stock(input_, group)

    module.reduce_from_tensor_model_parallel_region = reduce  # type: ignore[attr-defined]


REDUCTION_OVER_ONE_RANK = Seam(
    module="megatron.core.tensor_parallel.mappings",
    # Over one rank the autograd function returns its input as it came. Autograd makes that a view which must not be
    # changed in place, and an expert adds its bias in place (megatron/core/transformer/mlp.py).
    purpose="experts with a bias on one rank fail with 'is a view and is being modified inplace'",
    expects=(Expected(name="reduce_from_tensor_model_parallel_region", parameters=("input_", "group")),),
    adjust=_skip_a_reduction_over_one_rank,
)
