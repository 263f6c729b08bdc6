"""Every value by itself: type, choices and range."""

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.flags import all_flags, check_value
from megatron.pretrain.config.pretrain_config import GROUPS, PretrainConfig


def values_are_legal(config: PretrainConfig) -> None:
    """Values from the command line are legal already; those of a configuration made in code may not be."""
    for name, options in GROUPS:
        for flag in all_flags(options):
            check_value(flag, getattr(getattr(config, name), flag.field_name))


def preset_is_expanded(config: PretrainConfig) -> None:
    """The command line turns it into the flags that it stands for; in a configuration made in code it does nothing."""
    require(
        config.model.model_preset is None,
        f"model_preset {config.model.model_preset!r} in a configuration made in code",
        "the options that it stands for",
        "go through parse_command_line, or set the options of model_presets.preset_values",
    )


CHECKS: tuple[Check, ...] = (values_are_legal, preset_is_expanded)
