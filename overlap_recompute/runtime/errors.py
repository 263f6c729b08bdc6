"""What can go wrong with a unit: every message names the unit, its layer and its microbatch."""

from collections.abc import Hashable
from typing import NamedTuple

from overlap_recompute.plan.errors import UserError


class Place(NamedTuple):
    """Where something happened."""

    unit: str
    layer: int
    microbatch: Hashable
    call: int
    """How many calls of this unit came before it in the microbatch."""

    def __str__(self) -> str:
        again = f", call {self.call}" if self.call else ""
        return f"unit {self.unit!r} of layer {self.layer}, microbatch {self.microbatch}{again}"


class UnitError(UserError):
    """A fault of one unit.

    Args:
        found: what was found; `place` is put in front of it.
        expected: what would have been right.
        next_step: what to do about it.
        place: unit, layer, microbatch; None where no single unit is to blame.
    """

    def __init__(self, found: str, expected: str, next_step: str, place: Place | None = None) -> None:
        super().__init__(f"{place}: {found}" if place else found, expected, next_step)
        self.place = place
        self._arguments = (found, expected, next_step, place)

    def __reduce__(self) -> tuple[type, tuple[str, str, str, Place | None]]:  # type: ignore[override]
        return type(self), self._arguments


class ReplayError(UnitError):
    """A replay that raised, or that did not save what the forward pass had saved."""


class UnsafeUnitError(UnitError):
    """A unit that cannot be replayed: it has a side effect that would happen twice."""


class InPlaceError(UnitError):
    """A tensor that backward or a replay needs was modified in place."""


class VerifyError(UnitError):
    """A replay whose result differs, in at least one bit, from what the forward pass computed."""


class UnfinishedError(UnitError):
    """Handles that nobody consumed before the end of the step, or a microbatch begun twice."""
