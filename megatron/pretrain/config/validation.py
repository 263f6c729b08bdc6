"""Checks of a whole configuration, before torch is imported and before any process group exists."""

from megatron.pretrain.config.checks import (
    batch,
    data,
    dependencies,
    experts,
    machine,
    output,
    overlap,
    overlap_plan,
    parallel,
    pipeline,
    precision,
    recompute,
    schedule,
    shape,
    values,
)
from megatron.pretrain.config.checks.common import Check
from megatron.pretrain.config.pretrain_config import PretrainConfig

# The order matters: later checks may divide by what earlier ones have proved.
CHECKS: tuple[Check, ...] = tuple(
    check
    for subject in (
        values,
        parallel,
        shape,
        pipeline,
        batch,
        experts,
        schedule,
        precision,
        recompute,
        overlap,
        overlap_plan,
        data,
        output,
        machine,
        dependencies,
    )
    for check in subject.CHECKS
)


def validate(config: PretrainConfig) -> None:
    """Check all options against each other and against the machine's files.

    Reads no data file, and starts nothing; the same on every rank of one machine.

    Raises:
        ConfigError: the first contradiction, naming its flags.
    """
    for check in CHECKS:
        check(config)
