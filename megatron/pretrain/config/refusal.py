"""What an entry in the tables of refused flags says."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Flags that are refused, why, and what to do instead."""

    reason: str
    """Why, as the rest of a sentence that ends in "because"."""

    flags: tuple[str, ...]
    """Names; * stands for any characters."""

    instead: str = "remove it"
    """What to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedValue:
    """Values that Megatron-LM takes for a flag and this trainer refuses."""

    flag: str
    """Name of the flag."""

    values: tuple[str, ...]
    """Refused values."""

    reason: str
    """Why, as the rest of a sentence that ends in "because"."""

    instead: str
    """What to do."""
