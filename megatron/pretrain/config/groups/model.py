"""Shape and arithmetic of the transformer."""

from dataclasses import dataclass
from typing import Literal

from megatron.pretrain.config.ranges import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Probability,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Model: shape, arithmetic and fusions of the transformer."""

    model_preset: str | None = None
    """Own flag. Name of a model of docs/presets.md, such as gpt-7b or llama3-8b: stands for its shape flags; those that
    are given besides count instead."""

    num_layers: PositiveInt
    """Transformer layers of the whole model, over all pipeline stages."""

    hidden_size: PositiveInt
    """Width of the residual stream, in elements."""

    num_attention_heads: PositiveInt
    """Query heads per layer, over all tensor-parallel ranks."""

    seq_length: PositiveInt
    """Tokens per training sequence."""

    max_position_embeddings: PositiveInt | None = None
    """Longest sequence the position embedding can hold, in tokens; --seq-length when not given."""

    ffn_hidden_size: PositiveInt | None = None
    """Inner width of the feed-forward block, in elements; when not given 4 x hidden, or with --swiglu two thirds of
    that, rounded down to a multiple of 64."""

    kv_channels: PositiveInt | None = None
    """Elements per attention head; hidden size / heads when not given."""

    group_query_attention: bool = False
    """Let groups of query heads share one key and one value head (GQA)."""

    num_query_groups: PositiveInt = 1
    """Key and value heads per layer, over all tensor-parallel ranks; needs --group-query-attention."""

    position_embedding_type: Literal["learned_absolute", "rope", "none"] = "learned_absolute"
    """How positions enter the model: a learned table, rotary embedding, or not at all."""

    rotary_base: PositiveInt = 10000
    """Base period of the rotary embedding."""

    rotary_percent: PositiveFraction = 1.0
    """Fraction of each head's channels that the rotary embedding turns."""

    rotary_interleaved: bool = False
    """Rotate neighbouring channels instead of the two halves of a head."""

    rotary_seq_len_interpolation_factor: PositiveInt | None = None
    """Divide positions by this factor before the rotary embedding."""

    use_rope_scaling: bool = False
    """Scale rotary frequencies as Llama 3.1 does."""

    rope_scaling_factor: PositiveFloat = 8.0
    """Factor of --use-rope-scaling."""

    normalization: Literal["LayerNorm", "RMSNorm"] = "LayerNorm"
    """Kind of normalization layer."""

    norm_epsilon: PositiveFloat = 1e-5
    """Term added to the variance in a normalization layer."""

    qk_layernorm: bool = False
    """Normalize queries and keys of each head before attention."""

    swiglu: bool = False
    """Gated SiLU feed-forward block instead of GELU."""

    squared_relu: bool = False
    """Squared ReLU in the feed-forward block instead of GELU."""

    disable_bias_linear: bool = False
    """Linear layers without bias."""

    add_qkv_bias: bool = False
    """Bias in the query-key-value projection even with --disable-bias-linear."""

    untie_embeddings_and_output_weights: bool = False
    """Separate weights for the word embedding and the output layer."""

    make_vocab_size_divisible_by: PositiveInt = 128
    """Pad the vocabulary to a multiple of this times the tensor-parallel size, in tokens."""

    attention_dropout: Probability = 0.1
    """Dropout probability of attention weights."""

    hidden_dropout: Probability = 0.1
    """Dropout probability of the residual stream."""

    init_method_std: NonNegativeFloat = 0.02
    """Standard deviation of the normal distribution that weights start from."""

    use_cpu_initialization: bool = False
    """Draw initial weights on the CPU, so that they do not depend on the tensor-parallel size; always so on a CPU."""

    transformer_impl: Literal["local", "transformer_engine"] | None = None
    """Layers of Megatron-Core alone, or of Transformer Engine; when not given Transformer Engine if it is installed.
    (Megatron-LM: transformer_engine.)"""

    attention_backend: Literal["auto", "flash", "fused", "unfused", "local"] = "auto"
    """Attention kernel. Without Transformer Engine, auto and flash are PyTorch's scaled_dot_product_attention, unfused
    and local are Megatron-Core's own; fused needs Transformer Engine."""

    bias_gelu_fusion: bool = True
    """One kernel for bias and GELU."""

    bias_swiglu_fusion: bool = True
    """One kernel for bias and SwiGLU."""

    bias_dropout_fusion: bool = True
    """One kernel for bias, dropout and residual addition."""

    masked_softmax_fusion: bool = True
    """One kernel for scale, mask and softmax of unfused attention; a CUDA kernel, so off with the gloo backend."""

    rope_fusion: bool = True
    """One kernel for the rotary embedding; Transformer Engine's, so off with --transformer-impl local."""

    gradient_accumulation_fusion: bool = True
    """Add weight gradients to the gradient buffer inside the GEMM; a CUDA kernel, so off with the gloo backend and
    where it is not installed."""

    cross_entropy_loss_fusion: bool = False
    """Vocabulary-parallel cross entropy with fewer kernels and less communication."""

    cross_entropy_fusion_impl: Literal["native", "te"] = "native"
    """Whose fused cross entropy --cross-entropy-loss-fusion takes; te needs Transformer Engine."""
