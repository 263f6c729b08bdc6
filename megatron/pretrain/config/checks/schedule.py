"""Optimizer and its schedules."""

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.pretrain_config import PretrainConfig


def learning_rates_are_ordered(config: PretrainConfig) -> None:
    """The highest learning rate is not below the lowest or the first."""
    options = config.optimizer
    for flag, rate in (("--min-lr", options.min_lr), ("--lr-warmup-init", options.lr_warmup_init)):
        require(rate <= options.lr, f"{flag} {rate:g}", f"at most --lr {options.lr:g}", f"lower {flag} or raise --lr")


def one_unit_of_length(config: PretrainConfig) -> None:
    """A run is counted in iterations or in samples, schedule included."""
    options = config.optimizer
    by_samples = config.training.train_samples is not None
    other = {
        True: {
            "--lr-decay-iters": options.lr_decay_iters,
            "--lr-warmup-iters": options.lr_warmup_iters,
            "--lr-wsd-decay-iters": options.lr_wsd_decay_iters,
        },
        False: {
            "--lr-decay-samples": options.lr_decay_samples,
            "--lr-warmup-samples": options.lr_warmup_samples,
            "--lr-wsd-decay-samples": options.lr_wsd_decay_samples,
        },
    }[by_samples]
    unit, length = ("samples", "--train-samples") if by_samples else ("iters", "--train-iters")
    given = [flag for flag, value in other.items() if value]
    require(not given, f"{', '.join(given)} with {length}", f"a schedule in {unit}", f"use the -{unit} flags")


def warmup_ends_before_the_decay(config: PretrainConfig) -> None:
    """Megatron-Core's schedule decays from the end of the warm-up."""
    options = config.optimizer
    require(
        options.lr_warmup_fraction is None or not (options.lr_warmup_iters or options.lr_warmup_samples),
        "--lr-warmup-fraction together with a warm-up in iterations or samples",
        "one of them",
        "remove the other",
    )
    unit, warmup, decay = _warmup_and_decay(config)
    require(
        warmup < decay,
        f"a warm-up of {warmup} {unit}",
        f"fewer than the {decay} {unit} of the decay (--lr-decay-{unit}, or else the whole run)",
        "shorten the warm-up or lengthen the run",
    )


def annealing_fits_the_decay(config: PretrainConfig) -> None:
    """WSD needs the length of its annealing; the other styles have none."""
    options = config.optimizer
    annealing = options.lr_wsd_decay_iters or options.lr_wsd_decay_samples
    is_wsd = options.lr_decay_style == "WSD"
    unit, _, decay = _warmup_and_decay(config)
    require(
        is_wsd == (annealing is not None),
        f"--lr-decay-style {options.lr_decay_style} {'without' if is_wsd else 'with'} --lr-wsd-decay-{unit}",
        f"--lr-wsd-decay-{unit} with WSD, and only then",
        "add it" if is_wsd else "remove it",
    )
    require(
        (annealing or 0) <= decay,
        f"--lr-wsd-decay-{unit} {annealing}",
        f"at most the {decay} {unit} of the decay",
        "shorten the annealing",
    )


def weight_decay_rises(config: PretrainConfig) -> None:
    """A changing weight decay needs both ends; Megatron-Core lets it only rise."""
    options = config.optimizer
    start, end = options.start_weight_decay, options.end_weight_decay
    changes = options.weight_decay_incr_style != "constant"
    require(
        (start is not None) == changes and (end is not None) == changes,
        f"--weight-decay-incr-style {options.weight_decay_incr_style} with --start-weight-decay {start} and "
        f"--end-weight-decay {end}",
        "both ends with linear or cosine, and neither with constant",
        "add or remove them",
    )
    require(
        (start or 0) <= (end or 0),
        f"--start-weight-decay {start}",
        f"at most --end-weight-decay {end}",
        "exchange them",
    )


def one_source_of_the_schedule(config: PretrainConfig) -> None:
    """On resume either the command line or the checkpoint wins."""
    options = config.optimizer
    require(
        not (options.override_opt_param_scheduler and options.use_checkpoint_opt_param_scheduler),
        "both --override-opt-param-scheduler and --use-checkpoint-opt-param-scheduler",
        "at most one of them",
        "keep the one that should win",
    )


def parameter_gather_has_its_parts(config: PretrainConfig) -> None:
    """Parameters are gathered only where the optimizer is sharded, and by the buckets of the overlapped reduction."""
    options = config.optimizer
    needed = {
        "--use-distributed-optimizer": options.use_distributed_optimizer,
        "--overlap-grad-reduce": options.overlap_grad_reduce,
    }
    missing = [flag for flag, given in needed.items() if not given]
    require(
        not options.overlap_param_gather or not missing,
        f"--overlap-param-gather without {' and '.join(missing)}",
        "both of its conditions",
        f"add {' and '.join(missing)}",
    )


def distributed_optimizer_is_adam(config: PretrainConfig) -> None:
    """Megatron-Core shards Adam's state only."""
    options = config.optimizer
    require(
        not options.use_distributed_optimizer or options.optimizer == "adam",
        f"--use-distributed-optimizer with --optimizer {options.optimizer}",
        "--optimizer adam: megatron-core shards the state of no other",
        "remove --use-distributed-optimizer or train with adam",
    )


def _warmup_and_decay(config: PretrainConfig) -> tuple[str, int, int]:
    options, training = config.optimizer, config.training
    if training.train_samples is not None:
        return "samples", options.lr_warmup_samples, options.lr_decay_samples or training.train_samples
    return "iters", options.lr_warmup_iters, options.lr_decay_iters or config.train_iters


CHECKS: tuple[Check, ...] = (
    learning_rates_are_ordered,
    one_unit_of_length,
    warmup_ends_before_the_decay,
    annealing_fits_the_decay,
    weight_decay_rises,
    one_source_of_the_schedule,
    parameter_gather_has_its_parts,
    distributed_optimizer_is_adam,
)
