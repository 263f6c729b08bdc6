"""Number formats."""

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.pretrain_config import PretrainConfig


def one_format(config: PretrainConfig) -> None:
    """bfloat16 and float16 exclude each other."""
    require(
        not (config.precision.bf16 and config.precision.fp16),
        "both --bf16 and --fp16",
        "at most one of them",
        "keep one",
    )


def gradients_have_one_format(config: PretrainConfig) -> None:
    """Gradients in bfloat16 need weights in bfloat16, and are not in fp32."""
    precision = config.precision
    require(
        not precision.grad_reduce_in_bf16 or (precision.bf16 and not precision.accumulate_allreduce_grads_in_fp32),
        "--grad-reduce-in-bf16 "
        + ("with --accumulate-allreduce-grads-in-fp32" if precision.bf16 else "without --bf16"),
        "--bf16, and gradients in one format",
        "remove one of the flags" if precision.bf16 else "add --bf16",
    )


def loss_scale_range_is_ordered(config: PretrainConfig) -> None:
    """The dynamic loss scale starts at or above its lowest value."""
    precision = config.precision
    require(
        precision.initial_loss_scale >= precision.min_loss_scale,
        f"--initial-loss-scale {precision.initial_loss_scale:g}",
        f"at least --min-loss-scale {precision.min_loss_scale:g}",
        "raise it or lower the minimum",
    )


def deterministic_kernels_exist(config: PretrainConfig) -> None:
    """Megatron-Core's fused cross entropy adds in no fixed order."""
    require(
        not (config.training.deterministic_mode and config.model.cross_entropy_loss_fusion),
        "--deterministic-mode with --cross-entropy-loss-fusion",
        "deterministic kernels only",
        "remove one of them",
    )


CHECKS: tuple[Check, ...] = (
    one_format,
    gradients_have_one_format,
    loss_scale_range_is_ordered,
    deterministic_kernels_exist,
)
