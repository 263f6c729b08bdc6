"""Optimizer, learning-rate schedule and data-parallel gradient reduction."""

from dataclasses import dataclass
from typing import Literal

from megatron.pretrain.config.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerOptions:
    """Optimizer: update rule, learning-rate schedule and data-parallel gradient reduction."""

    lr: PositiveFloat
    """Highest learning rate."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """Update rule; adam is AdamW, with decoupled weight decay."""

    min_lr: NonNegativeFloat = 0.0
    """Lowest learning rate of the decay."""

    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = "linear"
    """Shape of the decay."""

    lr_decay_iters: PositiveInt | None = None
    """Iteration at which the decay ends; the run's last when not given."""

    lr_decay_samples: PositiveInt | None = None
    """Sequence at which the decay ends, with --train-samples; the run's last when not given."""

    lr_warmup_iters: NonNegativeInt = 0
    """Iterations of linear warm-up."""

    lr_warmup_samples: NonNegativeInt = 0
    """Sequences of linear warm-up, with --train-samples."""

    lr_warmup_fraction: Probability | None = None
    """Warm-up as a fraction of the decay; excludes the two flags above."""

    lr_warmup_init: NonNegativeFloat = 0.0
    """Learning rate that the warm-up starts from."""

    lr_wsd_decay_iters: PositiveInt | None = None
    """Iterations of the final annealing of --lr-decay-style WSD."""

    lr_wsd_decay_samples: PositiveInt | None = None
    """Sequences of that annealing, with --train-samples."""

    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = "exponential"
    """Shape of that annealing."""

    override_opt_param_scheduler: bool = False
    """On resume, take the schedule of the command line where it differs from the checkpoint's."""

    use_checkpoint_opt_param_scheduler: bool = False
    """On resume, take the schedule of the checkpoint where it differs from the command line's."""

    weight_decay: NonNegativeFloat = 0.01
    """Weight decay coefficient; biases and normalization weights have none."""

    start_weight_decay: NonNegativeFloat | None = None
    """First weight decay of --weight-decay-incr-style linear or cosine."""

    end_weight_decay: NonNegativeFloat | None = None
    """Last weight decay of --weight-decay-incr-style linear or cosine."""

    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = "constant"
    """How the weight decay changes over the run."""

    clip_grad: NonNegativeFloat = 1.0
    """Largest global L2 norm of the gradient; 0 switches clipping off."""

    adam_beta1: Probability = 0.9
    """Decay of Adam's first moment."""

    adam_beta2: Probability = 0.999
    """Decay of Adam's second moment."""

    adam_eps: PositiveFloat = 1e-8
    """Term added to Adam's denominator."""

    sgd_momentum: Probability = 0.9
    """Momentum of --optimizer sgd."""

    use_distributed_optimizer: bool = False
    """Shard optimizer state over data-parallel ranks (ZeRO-1)."""

    overlap_grad_reduce: bool = False
    """Reduce gradients bucket by bucket beside the backward pass."""

    overlap_param_gather: bool = False
    """Gather updated parameters beside the next forward pass; needs --use-distributed-optimizer and
    --overlap-grad-reduce."""

    ddp_bucket_size: PositiveInt | None = None
    """Parameters per gradient bucket; Megatron-Core chooses when not given."""

    ddp_average_in_collective: bool = False
    """Average gradients inside the reduction instead of scaling them before it."""
