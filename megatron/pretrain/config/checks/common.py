"""What all checks share."""

from collections.abc import Callable

from megatron.pretrain.config.pretrain_config import PretrainConfig
from overlap_recompute.plan.errors import ConfigError

Check = Callable[[PretrainConfig], None]
"""Raises ConfigError when the configuration cannot be run."""


def require(holds: bool, found: str, expected: str, next_step: str) -> None:
    """Raise a ConfigError with the three parts of its sentence unless the condition holds."""
    if not holds:
        raise ConfigError(found, expected, next_step)


def neighbours(number: int, divisor: int) -> str:
    """The multiples of `divisor` next to `number`, in words."""
    below = number // divisor * divisor
    return f"{below} or {below + divisor}" if below else str(divisor)
