"""Where a run reads on, and how far; a resumed one may have been given another global batch or other evaluations."""

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.training.state import Progress


def samples_of_the_run(config: PretrainConfig, progress: Progress) -> int:
    """Training sequences that the run has read and will read, over all data-parallel ranks."""
    left = max(0, config.train_iters - progress.iteration)
    return progress.consumed_train_samples + left * config.global_batch_size


def first_validation_sample(config: PretrainConfig, progress: Progress) -> int:
    """Position of the next validation sequence: after what was read before, but where a run evaluates only, the first.

    Two checkpoints are then compared on the same text, as in Megatron-LM.
    """
    return 0 if config.training.skip_train else progress.consumed_valid_samples
