"""LayerNorm and RMSNorm of torch for layers without Transformer Engine, usable with sequence parallelism.

The stock norm of such layers (`WrappedTorchNorm`, megatron/core/transformer/torch_norm.py 0.16.1) refuses sequence
parallelism. Only one thing is missing: each rank sees a part of the sequence, so the gradients of weight and bias are
partial sums. A parameter marked `sequence_parallel` gets its gradient summed over the tensor-parallel ranks by
megatron/core/distributed/finalize_model_grads.py.
"""

import torch
from megatron.core.fusions.fused_layer_norm import FusedLayerNorm
from megatron.core.transformer import TransformerConfig

from megatron.pretrain.platform import has_package


class SequenceParallelLayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last axis, with megatron-core's constructor.

    Args:
        config: gives the parameters' dtype and whether the input is split along the sequence.
        hidden_size: length of the last axis.
        eps: term added to the variance.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        _mark_parameters(self, config)


class SequenceParallelRMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last axis; arguments as `SequenceParallelLayerNorm`."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        _mark_parameters(self, config)


def _mark_parameters(norm: torch.nn.Module, config: TransformerConfig) -> None:
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


_NORMS: dict[str, type[torch.nn.Module]] = {
    "LayerNorm": SequenceParallelLayerNorm,
    "RMSNorm": SequenceParallelRMSNorm,
}


def norm_class(normalization: str) -> type[torch.nn.Module]:
    """The norm for layers without Transformer Engine: Apex's fused LayerNorm where it is installed, else torch's.

    Args:
        normalization: "LayerNorm" or "RMSNorm". Apex's kernel, as megatron-core wraps it, has no RMSNorm.
    """
    if normalization == "LayerNorm" and has_package("apex"):
        return FusedLayerNorm
    return _NORMS[normalization]
