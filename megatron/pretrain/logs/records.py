"""What a run reports, as plain values; every sink (console, file, TensorBoard, ...) reads the same records."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

CHECKPOINT_SAVED = "checkpoint_saved"
"""`EventRecord.event` of a checkpoint that is complete; its detail "path" names the folder."""

RESUMED = "resumed"
"""`EventRecord.event` of a run that goes on from a checkpoint."""

EXIT = "exit"
"""`EventRecord.event` of a stop before the last iteration; the message says why."""

_LARGEST_EXPONENT = 20.0


def perplexity_of(loss: float) -> float:
    """Return exp(loss), capped at exp(20) as in Megatron-LM, so that a bad start does not overflow."""
    return math.exp(min(loss, _LARGEST_EXPONENT))  # in this order NaN stays NaN


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationRecord:
    """Figures of the iterations since the record before it, reported every `--log-interval` iterations."""

    iteration: int
    """Iterations done, counted from 1."""

    train_iters: int
    """`--train-iters`: where the run ends."""

    consumed_samples: int
    """Training sequences read so far, over all data-parallel ranks."""

    elapsed_ms: float
    """Time per iteration, mean over the interval, without evaluation and checkpoints."""

    tokens_per_s: float
    """Tokens trained on per second, whole job."""

    tflops_per_rank: float
    """Model TFLOP/s of one rank (see `throughput`): recompute is not counted as work."""

    loss: float | None
    """Mean loss per token in nats over the interval; None when every iteration of it was skipped."""

    grad_norm: float | None
    """Gradient norm of the last iteration, before clipping; None when it was not finite."""

    learning_rate: float
    """Learning rate that the last iteration used."""

    loss_scale: float
    """Factor on the loss (1.0 unless fp16)."""

    global_batch_size: int
    """Sequences per iteration, over all data-parallel ranks."""

    skipped_iterations: int
    """Iterations of the interval whose update was skipped."""

    nan_iterations: int
    """Iterations of the interval whose loss was not finite."""

    auxiliary_losses: Mapping[str, float] = field(default_factory=dict)
    """Losses of a router without their weights, by Megatron-LM's name (`load_balancing_loss`, ...): mean over the
    interval, its microbatches and the layers with experts."""

    num_zeros: int | None = None
    """Gradient elements equal to zero (`--log-num-zeros-in-grad`)."""

    params_norm: float | None = None
    """L2 norm of the parameters (`--log-params-norm`)."""

    peak_memory_min_bytes: int | None = None
    """Peak memory of the rank that needed least so far."""

    peak_memory_max_bytes: int | None = None
    """Peak memory of the rank that needed most so far."""

    timers_ms: Mapping[str, float] = field(default_factory=dict)
    """Megatron's timers, per iteration, largest over ranks (`--timing-log-level`)."""

    timers_min_ms: Mapping[str, float] = field(default_factory=dict)
    """The same, smallest over the ranks that have the timer (`--timing-log-option minmax`)."""

    timers_by_rank_ms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """The same of every rank, 0 where a rank has no such timer (`--timing-log-option all`)."""

    extra: Mapping[str, float] = field(default_factory=dict)
    """Figures of optional parts under a name such as "overlap/hidden_recompute_ms"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """Loss on held-out data."""

    iteration: int
    """Iterations done before the evaluation."""

    split: str
    """"validation" or "test"."""

    loss: float
    """Mean loss per token, nats."""

    perplexity: float
    """exp(loss); see `perplexity_of`."""

    samples: int
    """Sequences read for it, over all data-parallel ranks."""

    consumed_samples: int
    """Training sequences read before it."""

    elapsed_ms: float
    """How long the evaluation took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """Something that happened: a checkpoint saved, a run resumed, a reason to stop."""

    iteration: int
    """Iterations done when it happened."""

    event: str
    """What kind: one of the constants above, or another short word."""

    message: str
    """One sentence for a person."""

    details: Mapping[str, str | float] = field(default_factory=dict)
    """What a program may want: {"path": ..., "elapsed_s": ...}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a metrics file says about the run before its first figure. Nothing in it depends on the host."""

    start_iteration: int
    """0, or the iteration of the checkpoint the run goes on from."""

    sequence_length: int
    """Tokens per sample."""

    world_size: int
    """Number of ranks."""

    device_type: str
    """"cpu" or "cuda"."""

    parameters: int | None = None
    """Trained parameters of the whole model."""

    flops_per_iteration: float | None = None
    """Model FLOPs of one iteration (see `throughput`)."""

    argv: tuple[str, ...] = ()
    """The command line after the program's name."""

    config: Mapping[str, object] = field(default_factory=dict)
    """Every option by group, as JSON values."""

    layout: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the parallel groups by flag name without dashes ("tensor_model_parallel_size": 2)."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages that decide a result."""


Record = IterationRecord | EvaluationRecord | EventRecord
