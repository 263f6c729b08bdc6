"""The sizes of a GPT, read off a Megatron-Core configuration."""

from typing import TYPE_CHECKING

from overlap_recompute.plan.model_shape import ModelShape, parameter_count

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig

__all__ = ["ModelShape", "parameter_count", "shape_of"]


def shape_of(
    config: "TransformerConfig",
    *,
    padded_vocab_size: int,
    sequence_length: int,
    max_position_embeddings: int,
    tied_embeddings: bool,
) -> ModelShape:
    """Read the sizes off a Megatron-Core configuration, whose defaults are filled in.

    Args:
        config: of a GPT with multi-head or grouped-query attention; multi-latent attention, multi-token prediction and
            state-space layers are not known here.
        padded_vocab_size: tokens.
        sequence_length: tokens per sample.
        max_position_embeddings: rows of a learned position table, 0 with rotary or no positions.
        tied_embeddings: whether embedding and output layer share weights.
    """
    experts = config.num_moe_experts or 0
    return ModelShape(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_query_groups or config.num_attention_heads,
        kv_channels=config.kv_channels,
        ffn_hidden_size=config.ffn_hidden_size,
        padded_vocab_size=padded_vocab_size,
        sequence_length=sequence_length,
        max_position_embeddings=max_position_embeddings,
        gated=config.gated_linear_unit,
        linear_bias=config.add_bias_linear,
        qkv_bias=config.add_qkv_bias,
        norm_parameters_per_channel=1 if config.normalization == "RMSNorm" else 2,
        qk_norm=config.qk_layernorm,
        tied_embeddings=tied_embeddings,
        moe_layers=_moe_layers(config.num_layers, config.moe_layer_freq) if experts else 0,
        num_experts=experts,
        experts_per_token=config.moe_router_topk if experts else 0,
        moe_ffn_hidden_size=(config.moe_ffn_hidden_size or config.ffn_hidden_size) if experts else 0,
        shared_expert_ffn_hidden_size=(config.moe_shared_expert_intermediate_size or 0) if experts else 0,
    )


def _moe_layers(num_layers: int, frequency: "int | list[int]") -> int:
    """Count MoE layers: every n-th layer from the first, or a pattern of ones and zeros, as in Megatron-Core."""
    return len(range(0, num_layers, frequency)) if isinstance(frequency, int) else sum(frequency)
