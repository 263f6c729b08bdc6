"""Stock activation recomputation of Megatron-Core."""

from dataclasses import dataclass
from typing import Literal

from megatron.pretrain.config.ranges import PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputeOptions:
    """Recompute: the stock activation recomputation of Megatron-Core."""

    recompute_granularity: Literal["full", "selective"] | None = None
    """Drop the activations of whole layers, or only of --recompute-modules; nothing when not given."""

    recompute_method: Literal["uniform", "block"] | None = None
    """With full granularity: uniform keeps the input of every group of --recompute-num-layers layers, block recomputes
    the first --recompute-num-layers layers of each stage and keeps the rest."""

    recompute_num_layers: PositiveInt | None = None
    """Layers per group (uniform) or layers to recompute per stage (block)."""

    recompute_modules: (
        tuple[Literal["core_attn", "layernorm", "mlp", "moe", "moe_act", "shared_experts"], ...] | None
    ) = None
    """With selective granularity: what to recompute; core_attn when not given."""

    distribute_saved_activations: bool = False
    """With full granularity: split the kept layer inputs over tensor-parallel ranks."""
