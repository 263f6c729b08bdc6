"""Saving and resuming."""

from dataclasses import dataclass
from typing import Literal

from megatron.pretrain.config.ranges import NonNegativeInt, PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOptions:
    """Checkpoints: saving and resuming."""

    save: str | None = None
    """Folder for checkpoints; nothing is saved when not given."""

    save_interval: PositiveInt | None = None
    """Iterations between checkpoints; only at the end when not given."""

    load: str | None = None
    """Folder to resume from; a run starts afresh when the folder has no checkpoint."""

    ckpt_step: NonNegativeInt | None = None
    """Iteration of the checkpoint to load; the latest when not given."""

    ckpt_format: Literal["torch_dist"] = "torch_dist"
    """Format of checkpoints: torch_dist is sharded and loads at another TP and PP."""

    async_save: bool = False
    """Write checkpoints from a forked process while training goes on."""

    ckpt_fully_parallel_save: bool = True
    """Share the writing of replicated tensors over data-parallel ranks."""

    ckpt_fully_parallel_load: bool = False
    """Share the reading of replicated tensors over data-parallel ranks."""

    no_save_optim: bool = False
    """Leave the optimizer's state out of checkpoints."""

    no_save_rng: bool = False
    """Leave the random-number states out of checkpoints."""

    no_load_optim: bool = False
    """Do not load the optimizer's state."""

    no_load_rng: bool = False
    """Do not load the random-number states."""

    finetune: bool = False
    """Load only weights, and start at iteration 0 with a new optimizer."""

    exit_on_missing_checkpoint: bool = False
    """End with an error when --load has no checkpoint, instead of starting afresh."""
