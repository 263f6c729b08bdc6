"""What a run carries from one iteration to the next, and what a checkpoint therefore holds."""

from dataclasses import dataclass

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come; the data position follows from it."""

    iteration: int = 0
    """Iterations done."""

    consumed_train_samples: int = 0
    """Training sequences read so far, over all data-parallel ranks."""

    consumed_valid_samples: int = 0
    """Validation sequences read so far, over all data-parallel ranks."""

    skipped_iterations: int = 0
    """Iterations whose update was skipped because a gradient was not finite."""


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """The parts of a run that change while it trains."""

    model: list[DistributedDataParallel]
    """One per virtual pipeline chunk of this rank."""

    optimizer: MegatronOptimizer
    """Plain or distributed, possibly chained."""

    scheduler: OptimizerParamScheduler
    """Learning rate and weight decay by iteration."""

    progress: Progress
    """Replaced by a new value after every iteration."""
