"""Number formats and loss scaling."""

from dataclasses import dataclass

from megatron.pretrain.config.ranges import PositiveFloat, PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionOptions:
    """Precision: number formats and loss scaling; fp32 when neither --bf16 nor --fp16 is given."""

    bf16: bool = False
    """Weights and activations in bfloat16, optimizer state in fp32."""

    fp16: bool = False
    """Weights and activations in float16 with loss scaling, optimizer state in fp32."""

    loss_scale: PositiveFloat | None = None
    """Fixed loss scale, best a power of two; with --fp16 a dynamic one when not given."""

    initial_loss_scale: PositiveFloat = 4294967296.0
    """First value of the dynamic loss scale."""

    min_loss_scale: PositiveFloat = 1.0
    """Lowest value of the dynamic loss scale."""

    loss_scale_window: PositiveInt = 1000
    """Iterations without overflow before the dynamic loss scale is doubled."""

    hysteresis: PositiveInt = 2
    """Overflows in a row before the dynamic loss scale is halved."""

    accumulate_allreduce_grads_in_fp32: bool = False
    """Accumulate and reduce gradients in fp32; always so with --bf16 unless --grad-reduce-in-bf16 is given."""

    grad_reduce_in_bf16: bool = False
    """Accumulate and reduce gradients in bfloat16."""

    attention_softmax_in_fp32: bool = False
    """Softmax of unfused attention in fp32; flash attention always does so."""

    fp16_lm_cross_entropy: bool = False
    """Cross entropy of the unfused loss in float16; needs --fp16."""
