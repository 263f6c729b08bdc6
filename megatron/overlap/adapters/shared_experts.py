"""Hooks megatron/core/transformer/moe/shared_experts.py of megatron-core 0.16.1."""

from typing import Any

from megatron.core.transformer.moe import shared_experts as upstream
from torch import Tensor
from torch.nn import functional

from megatron.overlap.adapters.mlp import MlpAdapter
from megatron.overlap.binder import Binder
from megatron.overlap.replacements import require_shape
from megatron.pretrain.platform.seam import Expected
from overlap_recompute.plan.layer_units import SHARED_EXPERTS

_EXPECTED = (Expected(name="SharedExpertMLP.forward", parameters=("self", "hidden_states")),)


class SharedExpertsAdapter:
    """Units `shared_experts.linear_fc1` and `shared_experts.activation`."""

    def __init__(self, binder: Binder, mlp: MlpAdapter) -> None:
        require_shape(upstream, "names the units of shared experts", *_EXPECTED)
        self._binder, self._mlp = binder, mlp

    def attach(self, shared: Any, layer: int) -> None:
        """Name the units of one module."""
        if type(shared).forward is not upstream.SharedExpertMLP.forward:
            return
        prefix = f"{SHARED_EXPERTS}."
        if shared.config.moe_shared_expert_overlap:
            for unit in ("linear_fc1", "activation"):
                self._binder.refuse(prefix + unit, layer, "it runs in parts beside the token exchange")
            return
        self._mlp.attach_linear(shared, layer, prefix)
        through = self._mlp.forward_of(shared, layer, prefix)

        def forward(hidden_states: Tensor) -> Tensor:
            output, _ = through(hidden_states)
            if not shared.use_shared_expert_gate:
                return output
            return output * functional.sigmoid(functional.linear(hidden_states, shared.gate_weight))

        self._binder.replacements.set(shared, "forward", forward)
