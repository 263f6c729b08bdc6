"""Batches and the length of the run."""

from megatron.pretrain.config.checks.common import Check, neighbours, require
from megatron.pretrain.config.pretrain_config import PretrainConfig


def batch_splits_over_ranks(config: PretrainConfig) -> None:
    """Every data-parallel rank runs the same whole number of microbatches."""
    micro, copies = config.training.micro_batch_size, config.data_parallel_size
    require(
        config.global_batch_size % (micro * copies) == 0,
        f"--global-batch-size {config.global_batch_size}",
        f"a multiple of {micro * copies} (--micro-batch-size {micro} x data-parallel size {copies})",
        f"choose {neighbours(config.global_batch_size, micro * copies)}",
    )


def run_has_a_length(config: PretrainConfig) -> None:
    """By iterations or by samples."""
    training = config.training
    require(
        training.train_iters is not None or training.train_samples is not None,
        "neither --train-iters nor --train-samples",
        "the length of the run",
        "add --train-iters N",
    )
    samples = training.train_samples
    require(
        samples is None or samples >= config.global_batch_size,
        f"--train-samples {samples}",
        f"at least one --global-batch-size {config.global_batch_size}",
        "train on more samples",
    )
    require(
        samples is None or training.train_iters == samples // config.global_batch_size,
        f"--train-samples {samples} and --train-iters {training.train_iters}",
        "one of them",
        "remove the other",
    )


def there_is_something_to_do(config: PretrainConfig) -> None:
    """A run trains or evaluates."""
    require(
        not config.training.skip_train or config.training.eval_iters > 0,
        "--skip-train with --eval-iters 0",
        "something to do",
        "raise --eval-iters, or remove --skip-train",
    )


CHECKS: tuple[Check, ...] = (batch_splits_over_ranks, run_has_a_length, there_is_something_to_do)
