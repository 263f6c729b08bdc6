"""Experts without data: every expert gets the same number of tokens, as a balanced router would give it."""

from types import TracebackType
from typing import Any

import numpy as np
import torch
from megatron.core.transformer.moe import token_dispatcher
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from megatron.overlap.replacements import Replacements
from megatron.pretrain.config import PretrainConfig

aten = torch.ops.aten
_ORDERS = ("sort_input_by_local_experts", "restore_output_by_local_experts")
_SPLITS = 3
"""Of input, of output, of output over tensor ranks."""


class BalancedRouting(TorchDispatchMode):
    """Answers the questions whose answers depend on values: how many tokens a mask selects, how many an expert gets.

    Hooks megatron/core/transformer/moe/token_dispatcher.py of megatron-core 0.16.1.
    """

    def __init__(self, config: PretrainConfig, replacements: Replacements) -> None:
        super().__init__()
        parallel, moe = config.parallel, config.moe
        shared = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
        tokens = config.training.micro_batch_size * config.model.seq_length
        self._tokens = tokens // (parallel.context_parallel_size * shared)
        self._experts = moe.num_experts or 1
        self._selected = self._tokens * (moe.moe_router_topk if moe.num_experts else 1)
        self._ranks = parallel.expert_model_parallel_size
        tensor_ranks = parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size
        self._of_an_expert = self._selected * self._ranks * tensor_ranks // self._experts
        self._splits = 0
        self._replacements = replacements

    def prepare(self, model: nn.Module) -> None:
        """Give the dispatchers of a fake model an order of chunks that can be read; which one changes no size."""
        for module in model.modules():
            dispatcher: Any = getattr(module, "token_dispatcher", None)
            for name in _ORDERS:
                if hasattr(dispatcher, name):
                    setattr(dispatcher, name, np.arange(getattr(dispatcher, name).numel()))

    def __enter__(self) -> "BalancedRouting":
        self._replacements.set(token_dispatcher, "maybe_move_tensor_to_cpu", self._counts)
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.masked_select.default:
            return args[0].new_empty((self._selected,))
        if func is aten._local_scalar_dense.default and getattr(args[0], "constant", None) is None:
            return self._of_an_expert
        return func(*args, **(kwargs or {}))

    def _counts(self, tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        """Tokens by rank or by expert; the dispatcher asks for its splits as arrays, those over tensor ranks last."""
        self._splits += as_numpy
        if not isinstance(tensor, torch.Tensor):
            return tensor
        if not as_numpy:
            value = self._selected // self._experts if tensor.dim() == 2 else self._of_an_expert
        else:
            value = self._selected // self._ranks if self._splits % _SPLITS else self._selected
        return np.full(tuple(tensor.shape), value, dtype=np.int64)
