"""Batches, length of the run, evaluation and stopping."""

from dataclasses import dataclass
from typing import Literal

from megatron.pretrain.config.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Seed


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """Training: batches, length of the run, evaluation and stopping."""

    micro_batch_size: PositiveInt
    """Sequences that pass through the model at once on one data-parallel rank."""

    global_batch_size: PositiveInt | None = None
    """Sequences per optimizer step, over all data-parallel ranks; micro batch x data-parallel size when not given."""

    train_iters: PositiveInt | None = None
    """Optimizer steps of the whole run; this or --train-samples."""

    train_samples: PositiveInt | None = None
    """Sequences of the whole run; divided by the global batch size, rounded down."""

    seed: Seed = 1234
    """Seed of initial weights, dropout and data order."""

    eval_interval: PositiveInt = 1000
    """Optimizer steps between evaluations."""

    eval_iters: NonNegativeInt = 100
    """Global batches per evaluation; 0 switches evaluation off."""

    skip_train: bool = False
    """Only evaluate."""

    exit_interval: PositiveInt | None = None
    """Save and end the program when the iteration is a multiple of this."""

    exit_duration_in_mins: PositiveFloat | None = None
    """Save and end the program after this many minutes. (Megatron-LM: whole minutes.)"""

    exit_signal_handler: bool = False
    """On SIGTERM or SIGUSR1 finish the iteration, save, and exit with status 0. (Megatron-LM: SIGTERM.)"""

    check_for_nan_in_loss_and_grad: bool = True
    """Stop at the first loss or gradient that is not finite; off with the dynamic loss scale of --fp16, which
    handles them."""

    deterministic_mode: bool = False
    """Use only deterministic kernels, and stop where there is none."""

    manual_gc: bool = False
    """Collect Python's garbage only when the trainer says so, on all ranks at once."""

    manual_gc_interval: NonNegativeInt = 0
    """Optimizer steps between collections with --manual-gc; 0 for never."""

    manual_gc_eval: bool = True
    """With --manual-gc, collect before and after every evaluation."""

    empty_unused_memory_level: Literal[0, 1, 2] = 0
    """Return cached GPU memory to the driver: 0 never, 1 and 2 after every optimizer step. (Megatron-LM: 1 before the
    step, 2 before and after it.)"""
