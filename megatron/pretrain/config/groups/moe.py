"""Mixture of experts."""

from dataclasses import dataclass
from typing import Literal

from megatron.pretrain.config.ranges import NonNegativeFloat, PositiveFloat, PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEOptions:
    """Mixture of experts: experts, router and dispatcher. All of it needs --num-experts."""

    num_experts: PositiveInt | None = None
    """Experts per MoE layer, over all expert-parallel ranks; a dense model when not given."""

    moe_layer_freq: str = "1"
    """Which layers have experts: every n-th layer for a number n, or one 0 or 1 per layer as a Python list expression
    such as "[0]*1+[1]*7"."""

    moe_ffn_hidden_size: PositiveInt | None = None
    """Inner width of one expert, in elements; --ffn-hidden-size when not given."""

    moe_router_topk: PositiveInt = 2
    """Experts that each token goes to."""

    moe_router_load_balancing_type: Literal["aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "none"] = (
        "aux_loss"
    )
    """How the router spreads tokens over experts."""

    moe_aux_loss_coeff: NonNegativeFloat = 0.0
    """Weight of the load-balancing loss; 1e-2 is a common start."""

    moe_z_loss_coeff: NonNegativeFloat | None = None
    """Weight of the router's z-loss; 1e-3 is a common start."""

    moe_router_dtype: Literal["fp32", "fp64"] | None = None
    """Precision of the router's product and of combining expert outputs; that of the model when not given."""

    moe_router_score_function: Literal["softmax", "sigmoid"] = "softmax"
    """Function that turns router logits into scores."""

    moe_router_pre_softmax: bool = False
    """Take the softmax before the top-k choice instead of after it."""

    moe_router_topk_scaling_factor: PositiveFloat | None = None
    """Factor on the scores of the chosen experts; works with --moe-router-pre-softmax."""

    moe_router_force_load_balancing: bool = False
    """Route at random, for benchmarks with balanced experts; the model learns nothing."""

    moe_token_dispatcher_type: Literal["allgather", "alltoall"] = "allgather"
    """Collective that carries tokens to their experts."""

    moe_expert_capacity_factor: PositiveFloat | None = None
    """Tokens an expert takes, as a multiple of its even share; the rest is dropped. No limit when not given."""

    moe_pad_expert_input_to_capacity: bool = False
    """Pad each expert's tokens up to its capacity; needs --moe-expert-capacity-factor."""

    moe_token_drop_policy: Literal["probs", "position"] = "probs"
    """Which tokens to drop over capacity: the least likely, or the last."""

    moe_shared_expert_intermediate_size: PositiveInt | None = None
    """Inner width, in elements, of the expert that every token passes; no such expert when not given."""

    moe_shared_expert_overlap: bool = False
    """Run the shared expert while tokens travel; needs the alltoall dispatcher."""

    moe_grouped_gemm: bool = False
    """All local experts in one grouped GEMM; a CUDA kernel that needs Transformer Engine."""
