"""Every value by itself: type, choices and range."""

from megatron.pretrain.config.checks.common import Check
from megatron.pretrain.config.flags import all_flags, check_value
from megatron.pretrain.config.pretrain_config import GROUPS, PretrainConfig


def values_are_legal(config: PretrainConfig) -> None:
    """Values from the command line are legal already; those of a configuration made in code may not be."""
    for name, options in GROUPS:
        for flag in all_flags(options):
            check_value(flag, getattr(getattr(config, name), flag.field_name))


CHECKS: tuple[Check, ...] = (values_are_legal,)
