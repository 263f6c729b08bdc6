"""How much work an iteration is, and how fast it went; for what counts as work see the NOTE [ model FLOPs ] in
`overlap_recompute/plan/model_flops.py`."""

from overlap_recompute.plan.model_flops import flops_per_token
from overlap_recompute.plan.model_shape import ModelShape

__all__ = ["flops_per_iteration", "flops_per_token", "tflops_per_rank", "tokens_per_s"]


def flops_per_iteration(shape: ModelShape, global_batch_size: int, *, causal: bool = True) -> float:
    """Return model FLOPs of one iteration over `global_batch_size` sequences, all ranks together."""
    return global_batch_size * shape.sequence_length * flops_per_token(shape, causal=causal)


def tflops_per_rank(flops: float, elapsed_s: float, world_size: int) -> float:
    """Return TFLOP/s of one rank.

    Args:
        flops: model FLOPs of an iteration, all ranks together.
        elapsed_s: time the iteration took.
        world_size: number of ranks.
    """
    return flops / (elapsed_s * world_size * 1e12)


def tokens_per_s(global_batch_size: int, sequence_length: int, elapsed_s: float) -> float:
    """Return tokens per second of the whole job, for an iteration of `elapsed_s`."""
    return global_batch_size * sequence_length / elapsed_s
