"""Begin and end of replays in an event ring (docs/extension.md): cheap enough to be always on."""

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, NamedTuple

from overlap_recompute.ops.marks import EventRing, MarkKind

if TYPE_CHECKING:
    from overlap_recompute.runtime.calls import UnitCall
    from overlap_recompute.runtime.units import Unit

# Bound once: reading a member of an enumeration takes as long as half a mark.
BEGIN, END, FAILED = int(MarkKind.BEGIN), int(MarkKind.END), int(MarkKind.INSTANT)
CALL_BITS = 16
_CALLS = (1 << CALL_BITS) - 1
_NOTHING = object()


class ReplayMarks:
    """What a replay is called in an event ring: its unit by name, microbatch and call in the value.

    The name, such as `R(L7.linear_fc1)`, is put together and numbered once for each unit; `read_value` takes the value
    apart.

    Args:
        ring: where the marks go.
        number_of: a number for the key of a microbatch, at least 0 and below 2**46.
    """

    __slots__ = ("mark", "_intern", "_number_of", "_names", "_key", "_microbatch")

    def __init__(self, ring: EventRing, number_of: Callable[[Hashable], int]) -> None:
        self.mark = ring.mark
        self._intern, self._number_of = ring.intern, number_of
        self._names: dict[Unit, int] = {}
        self._key: object = _NOTHING
        self._microbatch = 0

    def of(self, call: "UnitCall", hidden: bool) -> tuple[int, int]:
        """Name and value of the marks of a replay."""
        unit, key = call.unit, call.microbatch.key
        if key is not self._key:
            self._key, self._microbatch = key, self._number_of(key) << CALL_BITS + 1
        name = self._names.get(unit)
        if name is None:
            name = self._names[unit] = self._intern(f"R(L{unit.layer}.{unit.name})")
        return name, self._microbatch | (call.number & _CALLS) << 1 | hidden

    def forget(self) -> None:
        """Let go of the units and of the last key; the ring keeps the names."""
        self._names.clear()
        self._key = _NOTHING


class ReplayValue(NamedTuple):
    """What the value of a replay's mark says."""

    microbatch: int
    """`number_of` its key."""
    call: int
    """Of the unit in that microbatch, from 0; the lowest 16 bits of it."""
    hidden: bool
    """Started by a fill, and not by backward."""


def read_value(value: int) -> ReplayValue:
    """Take the value of a replay's mark apart."""
    return ReplayValue(value >> CALL_BITS + 1, value >> 1 & _CALLS, bool(value & 1))
