"""The text form of a policy without a planner: `all`, `0:all,1:none`, `0:linear_fc1+activation,1:none`.

    policy  = "on-demand" | entry { "," entry }
    entry   = [ stages ":" ] what
    stages  = "all" | STAGE | STAGE "-" STAGE          pipeline ranks, from 0; both ends of a range count
    what    = "none" | "all" | UNIT { "+" UNIT }

A stage does what the last entry that concerns it says, and keeps everything when none does. `on-demand` is `all`
without any overlap.
"""

import difflib
import re
from dataclasses import dataclass

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.layer_units import LAYER_UNITS

ON_DEMAND = "on-demand"
_NONE, _ALL = "none", "all"
_FORM = "none, all, on-demand, or entries such as 0:all,1:none or all:linear_fc1+activation"
_STAGES = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """What one pipeline stage drops."""

    units: tuple[str, ...]
    """Names of `LAYER_UNITS`."""
    by_name: bool
    """Whether the user named them. `all` means all that can be dropped; a name that cannot be is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyText:
    """A parsed policy."""

    stages: tuple[Drop, ...]
    """One per pipeline stage."""
    on_demand: bool
    """Recompute only when backward asks, never in windows."""


def parse_policy(text: str, stages: int, *, flag: str) -> PolicyText:
    """Read a policy for a pipeline of `stages` ranks.

    Args:
        text: see the head of this file.
        stages: pipeline-parallel size.
        flag: what to call the text in messages.

    Raises:
        ConfigError: the text does not follow the grammar, or names a stage or a unit that does not exist.
    """
    if text == ON_DEMAND:
        everything = Drop(units=LAYER_UNITS, by_name=False)
        return PolicyText(stages=(everything,) * stages, on_demand=True)
    drops = [Drop(units=(), by_name=False)] * stages
    for entry in text.split(","):
        where, colon, what = entry.strip().rpartition(":")
        drop = _parse_what(what.strip(), f"{flag} {text}")
        for stage in _parse_stages(where.strip() if colon else _ALL, stages, f"{flag} {text}"):
            drops[stage] = drop
    return PolicyText(stages=tuple(drops), on_demand=False)


def _parse_stages(text: str, stages: int, found: str) -> range:
    if text == _ALL:
        return range(stages)
    match = _STAGES.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{found}, whose {text!r} names no stage", "a number, a range such as 0-2, or all", f"write it as {_FORM}"
        )
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last or last >= stages:
        raise ConfigError(
            f"{found}, whose stage {text} does not exist",
            f"stages from 0 to {stages - 1} (--pipeline-model-parallel-size {stages})",
            "correct the number of the stage",
        )
    return range(first, last + 1)


def _parse_what(text: str, found: str) -> Drop:
    if text in (_NONE, _ALL):
        return Drop(units=LAYER_UNITS if text == _ALL else (), by_name=False)
    names = tuple(name.strip() for name in text.split("+"))
    for name in names:
        if name not in LAYER_UNITS:
            raise _unknown(name, found)
    return Drop(units=tuple(name for name in LAYER_UNITS if name in names), by_name=True)


def _unknown(name: str, found: str) -> ConfigError:
    if name == ON_DEMAND:
        return ConfigError(
            f"{found}, which mixes on-demand with something else",
            "on-demand alone",
            "leave the rest out, or choose what is dropped here and add --overlap-recompute-serialize",
        )
    words = (*LAYER_UNITS, _NONE, _ALL)
    near = difflib.get_close_matches(name, words, n=1, cutoff=0.4)
    hint = f"write {near[0]} if that was meant" if near else f"write it as {_FORM}"
    return ConfigError(
        f"{found}, whose {name!r} is no unit" if name else f"{found}, where the name of a unit is missing",
        f"{_NONE}, {_ALL}, or units of {', '.join(LAYER_UNITS)} joined by +",
        hint,
    )
