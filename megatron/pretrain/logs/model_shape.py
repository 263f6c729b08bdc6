"""The sizes of a GPT that its work and its parameters follow from, and the parameter count."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of the whole model, before it is spread over ranks."""

    num_layers: int
    """Transformer layers."""

    hidden_size: int
    """Width of the residual stream."""

    num_attention_heads: int
    """Query heads."""

    num_query_groups: int
    """Key and value heads; equal to the query heads without grouped-query attention."""

    kv_channels: int
    """Channels of one head."""

    ffn_hidden_size: int
    """Inner width of a dense feed-forward block, after the gate."""

    padded_vocab_size: int
    """Rows of the embedding and of the output layer."""

    sequence_length: int
    """Tokens per sample."""

    max_position_embeddings: int = 0
    """Rows of a learned position table; 0 when there is none."""

    gated: bool = False
    """SwiGLU: the first feed-forward matrix has a second half, the gate."""

    linear_bias: bool = True
    """Linear layers have a bias."""

    qkv_bias: bool = False
    """The query-key-value projection has a bias even where others have none."""

    norm_parameters_per_channel: int = 2
    """2 for LayerNorm (weight and bias), 1 for RMSNorm."""

    qk_norm: bool = False
    """Queries and keys of each head are normalized."""

    tied_embeddings: bool = True
    """The output layer uses the embedding's weights."""

    moe_layers: int = 0
    """How many of the layers have experts in place of the dense block."""

    num_experts: int = 0
    """Experts of such a layer."""

    experts_per_token: int = 0
    """Experts that one token passes through."""

    moe_ffn_hidden_size: int = 0
    """Inner width of one expert, after the gate."""

    shared_expert_ffn_hidden_size: int = 0
    """Inner width of the expert that every token passes; 0 when there is none."""


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


def parameter_count(shape: ModelShape) -> int:
    """Return the number of trained parameters of the whole model, all experts included."""
    hidden, norm = shape.hidden_size, shape.norm_parameters_per_channel
    embeddings = shape.padded_vocab_size * hidden * (1 if shape.tied_embeddings else 2)
    positions = shape.max_position_embeddings * hidden
    dense = (shape.num_layers - shape.moe_layers) * _mlp_parameters(shape, shape.ffn_hidden_size)
    layers = shape.num_layers * (_attention_parameters(shape) + 2 * norm * hidden)
    return embeddings + positions + layers + dense + shape.moe_layers * _moe_parameters(shape) + norm * hidden


def _attention_parameters(shape: ModelShape) -> int:
    query = shape.num_attention_heads * shape.kv_channels
    qkv = query + 2 * shape.num_query_groups * shape.kv_channels
    bias = (qkv if shape.linear_bias or shape.qkv_bias else 0) + (shape.hidden_size if shape.linear_bias else 0)
    norms = 2 * shape.norm_parameters_per_channel * shape.kv_channels if shape.qk_norm else 0
    return shape.hidden_size * (qkv + query) + bias + norms


def _mlp_parameters(shape: ModelShape, inner: int) -> int:
    first = inner * (2 if shape.gated else 1)
    bias = first + shape.hidden_size if shape.linear_bias else 0
    return shape.hidden_size * (first + inner) + bias


def _moe_parameters(shape: ModelShape) -> int:
    router = shape.num_experts * shape.hidden_size
    shared = _mlp_parameters(shape, shape.shared_expert_ffn_hidden_size) if shape.shared_expert_ffn_hidden_size else 0
    return router + shape.num_experts * _mlp_parameters(shape, shape.moe_ffn_hidden_size) + shared
