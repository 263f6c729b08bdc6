"""Which options make a model the one it is: same values, same parameters with the same meaning.

Sequence length, dropout, precision, kernels and the parallel layout are not among them.
"""

MODEL_FIELDS = (
    "num_layers", "hidden_size", "num_attention_heads", "position_embedding_type", "rotary_base", "rotary_percent",
    "rotary_interleaved", "rotary_seq_len_interpolation_factor", "use_rope_scaling", "rope_scaling_factor",
    "normalization", "norm_epsilon", "qk_layernorm", "swiglu", "squared_relu", "disable_bias_linear", "add_qkv_bias",
    "untie_embeddings_and_output_weights",
)  # fmt: skip
DERIVED_FIELDS = ("ffn_hidden_size", "kv_channels", "num_query_groups")
"""Properties of PretrainConfig that fill in what was not given."""

MOE_FIELDS = (
    "num_experts", "moe_ffn_hidden_size", "moe_router_topk", "moe_router_score_function", "moe_router_pre_softmax",
    "moe_router_topk_scaling_factor", "moe_shared_expert_intermediate_size",
)  # fmt: skip
"""They count only with experts."""
