"""How much work one token is.

NOTE [ model FLOPs ]
For a token, with h hidden size, q = heads x channels, k = query groups x channels, s sequence length, V padded
vocabulary, f inner width of the feed-forward block, m = 3 matrices of it with a gate (SwiGLU) and 2 without:

    attention     2h(q + 2k) + 2qh           projections
                + 2 * 2q * s / 2             scores and weighted sum; a token sees half of the sequence on average
    feed-forward  2hfm                       MoE: f = experts per token x expert width + shared expert width
    logits        2hV                        once, not per layer

1. A multiply-add is two operations. The backward pass costs twice the forward pass, so a token costs three times the
   sum over layers and logits.
2. The half for the causal mask is Megatron-LM's convention since 2025 (`num_floating_point_operations` in its
   `megatron/training/training.py`); it and the paper (Narayanan et al., "Efficient Large-Scale Language Model Training
   on GPU Clusters Using Megatron-LM", arXiv 2104.04473, appendix "Floating-point operations") counted the full square
   before. Set `causal=False` for figures that compare with those.
3. Left out, as there: norms, activations, softmax, embedding look-up, the MoE router.
4. Unlike the paper's 96BslH^2, recompute is not work: TFLOP/s here over the peak of the device is MFU, not HFU. A run
   that recomputes less is faster by this figure, which is what one wants to see.
"""

from overlap_recompute.plan.model_shape import ModelShape

FORWARD_AND_BACKWARD = 3
"""Forward, gradient of the input, gradient of the weights."""


def flops_per_token(shape: ModelShape, *, causal: bool = True) -> float:
    """Return model FLOPs that training on one token takes; see the NOTE above.

    Args:
        shape: sizes of the model.
        causal: count the half of the attention matrix that the causal mask leaves.
    """
    dense = (shape.num_layers - shape.moe_layers) * _feed_forward(shape, shape.ffn_hidden_size)
    routed = shape.experts_per_token * shape.moe_ffn_hidden_size
    experts = shape.moe_layers * _feed_forward(shape, routed + shape.shared_expert_ffn_hidden_size)
    logits = 2 * shape.hidden_size * shape.padded_vocab_size
    return FORWARD_AND_BACKWARD * (shape.num_layers * _attention(shape, causal) + dense + experts + logits)


def _attention(shape: ModelShape, causal: bool) -> float:
    query = shape.num_attention_heads * shape.kv_channels
    key = shape.num_query_groups * shape.kv_channels
    projections = 2 * shape.hidden_size * (query + 2 * key) + 2 * query * shape.hidden_size
    return projections + 2 * 2 * query * shape.sequence_length / (2 if causal else 1)


def _feed_forward(shape: ModelShape, inner: int) -> int:
    return 2 * shape.hidden_size * inner * (3 if shape.gated else 2)
