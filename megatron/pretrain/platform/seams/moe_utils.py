"""Hooks megatron/core/transformer/moe/moe_utils.py of megatron-core 0.16.1."""

from types import ModuleType
from typing import Any

import torch

from megatron.pretrain.platform.seam import Expected, Seam

MODULE = "megatron.core.transformer.moe.moe_utils"


def _name_the_absent_gemm(module: ModuleType) -> None:
    module.__dict__.setdefault("te_general_gemm", None)


def _counts_to_numpy(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _replace_host_copy(module: ModuleType) -> None:
    module.maybe_move_tensor_to_cpu = _counts_to_numpy  # type: ignore[attr-defined]


ROUTER_WITHOUT_TRANSFORMER_ENGINE = Seam(
    module=MODULE,
    purpose="the router asks whether te_general_gemm is None, a name that exists only with Transformer Engine",
    expects=(
        Expected(
            name="RouterGatingLinearFunction.forward", parameters=("ctx", "inp", "weight", "bias", "router_dtype")
        ),
    ),
    adjust=_name_the_absent_gemm,
)

COUNTS_AS_NUMPY = Seam(
    module=MODULE,
    purpose="a tensor that is already on the CPU is not turned into numpy, and all_to_all_single refuses it",
    expects=(Expected(name="maybe_move_tensor_to_cpu", parameters=("tensor", "as_numpy", "record_stream")),),
    adjust=_replace_host_copy,
)
