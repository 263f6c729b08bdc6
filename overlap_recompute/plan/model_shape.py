"""The sizes of a GPT that its work and its parameters follow from, and the parameter count."""

from dataclasses import dataclass


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
