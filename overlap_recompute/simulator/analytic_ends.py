"""Embedding and head on hardware that one does not have.

The head is Megatron-Core's: final norm, a product with the rank's part of the vocabulary, cross entropy over the parts
in fp32 with three small all-reduces (maximum, target's logit, sum of exponentials).
"""

from overlap_recompute.plan.profile import EndCost
from overlap_recompute.simulator.analytic_compute import FP32_BYTES
from overlap_recompute.simulator.analytic_steps import (
    TP_BACKWARD,
    TP_FORWARD,
    LayerSite,
    column_parallel,
    column_parallel_backward,
)

TOKEN_BYTES = 8
LOSS_FORWARD_BYTES = 36
"""Read and written for one logit: convert (2 + 4), maximum (4), subtract (8), exponentiate (8), sum (4), divide (8) -
the first of them in bf16."""
LOSS_BACKWARD_BYTES = 14
"""Scale (8), convert (4 + 2)."""
LOSS_FORWARD_KERNELS, LOSS_BACKWARD_KERNELS = 8, 3


def embedding_cost(site: LayerSite, vocabulary: int, positions: int) -> EndCost:
    """Look-up in the rank's part of the vocabulary, the reduction over parts, positions.

    Args:
        site: a layer of the model, for its sizes.
        vocabulary: rows of the embedding, padded, all ranks.
        positions: rows of a learned table of positions; 0: none.
    """
    shape = site.shape
    collective = "reduce_scatter" if site.is_sequence_parallel else "all_reduce"
    adds = 3 * site.width_bytes * (positions > 0)
    gather = site.window(TP_BACKWARD, "all_gather", site.full_bytes) if site.is_sequence_parallel else ()
    return EndCost(
        forward=(
            site.compute("embedding", site.moves(2 * site.full_bytes + adds, kernels=2)),
            *site.window(TP_FORWARD, collective, site.full_bytes),
        ),
        backward=(
            *gather,
            # Rows are added into the fp32 gradient buffer by token.
            site.compute("embedding backward", site.moves(3 * site.full_bytes, kernels=2)),
        ),
        parameters=(vocabulary // shape.tensor_parallel + positions) * shape.hidden,
        kept_bytes=shape.tokens * TOKEN_BYTES,
        transient_bytes=2 * site.full_bytes,
    )


def head_cost(site: LayerSite, vocabulary: int) -> EndCost:
    """Final norm, output layer and loss; the output matrix is counted whether or not it is the embedding's.

    Args:
        site: a layer of the model, for its sizes.
        vocabulary: rows of the output matrix, padded, all ranks.
    """
    shape = site.shape
    part = vocabulary // shape.tensor_parallel
    logits = shape.tokens * part
    token_bytes = shape.tokens * FP32_BYTES
    reductions = [step for _ in range(3) for step in site.window(TP_FORWARD, "all_reduce", token_bytes)]
    loss_us = site.moves(logits * LOSS_FORWARD_BYTES, LOSS_FORWARD_KERNELS)
    loss_backward_us = site.moves(logits * LOSS_BACKWARD_BYTES, LOSS_BACKWARD_KERNELS)
    statistics = (1 if shape.rms_norm else 2) * shape.local_tokens * FP32_BYTES
    norm_backward = site.compute("final_layernorm backward", site.moves(3 * site.width_bytes, kernels=2))
    return EndCost(
        forward=(
            site.norm("final_layernorm"),
            *column_parallel(site, "output_layer", part),
            site.compute("loss", loss_us),
            *reductions,
        ),
        backward=(
            site.compute("loss backward", loss_backward_us),
            *column_parallel_backward(site, "output_layer", part, ()),
            norm_backward,
        ),
        parameters=part * shape.hidden + (1 if shape.rms_norm else 2) * shape.hidden,
        kept_bytes=logits * FP32_BYTES + 2 * site.width_bytes + statistics + 2 * shape.tokens * TOKEN_BYTES,
        transient_bytes=logits * (FP32_BYTES + shape.element_bytes) + site.full_bytes + site.width_bytes,
    )
