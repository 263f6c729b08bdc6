"""Hooks megatron/core/transformer/transformer_layer.py of megatron-core 0.16.1."""

from collections.abc import Iterable
from typing import Any

from megatron.core.transformer import transformer_layer as upstream
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import nn

from megatron.overlap.adapters.attention import AttentionAdapter
from megatron.overlap.adapters.mlp import MlpAdapter
from megatron.overlap.adapters.shared_experts import SharedExpertsAdapter
from megatron.overlap.binder import Binder
from megatron.overlap.replacements import require_shape
from megatron.pretrain.platform.seam import Expected
from overlap_recompute.plan.layer_units import EXPERTS

_EXPECTED = (Expected(name="TransformerLayer.forward", parameters=("self", "args", "kwargs")),)
_NORMS = ("input_layernorm", "pre_mlp_layernorm")


class TransformerLayerAdapter:
    """The units of whole layers, whatever specification they were built from.

    Names are those of the submodules, so a layer of Transformer Engine has no unit for norms that are fused into the
    linear behind them.
    """

    def __init__(self, binder: Binder) -> None:
        require_shape(upstream, "names the units of a layer", *_EXPECTED)
        self._binder = binder
        self._attention, self._mlp = AttentionAdapter(binder), MlpAdapter(binder)
        self._shared_experts = SharedExpertsAdapter(binder, self._mlp)

    def attach_all(self, chunks: Iterable[nn.Module]) -> tuple[int, ...]:
        """Name the units of every layer of the model chunks of this rank; returns the layers' global indices."""
        indices = []
        for chunk in chunks:
            rotates = any(path.endswith("rotary_pos_emb") for path, _ in chunk.named_modules())
            for layer in chunk.modules():
                if isinstance(layer, upstream.TransformerLayer):
                    indices.append(layer.layer_number - 1)
                    self._attach(layer, layer.layer_number - 1, rotates)
        return tuple(indices)

    def _attach(self, layer: Any, index: int, rotates: bool) -> None:
        self._binder.runtime.attach_layer(layer, index)
        for name in _NORMS:
            norm = getattr(layer, name)
            if not isinstance(norm, IdentityOp):
                self._binder.attach(norm, name, index)
        self._attention.attach(layer.self_attention, index, rotates)
        if isinstance(layer.mlp, MoELayer):
            self._attach_experts(layer.mlp, index)
        else:
            self._mlp.attach(layer.mlp, index)

    def _attach_experts(self, mixture: Any, index: int) -> None:
        """Router, dispatch and permutation stay as they are: they count, exchange and balance, once."""
        if isinstance(mixture.experts, SequentialMLP):
            for number, expert in enumerate(mixture.experts.local_experts):
                self._mlp.attach(expert, index, f"{EXPERTS}.{number}.")
        else:
            for unit in ("linear_fc1", "activation"):
                kind = type(mixture.experts).__name__
                self._binder.refuse(f"{EXPERTS}.{unit}", index, f"{kind} computes all experts in one call")
        if mixture.shared_experts is not None:
            self._shared_experts.attach(mixture.shared_experts, index)
