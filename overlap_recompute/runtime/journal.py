"""An ordered record of what happened to which unit, for tests; traces are made of marks (`marks.py`)."""

import enum
import time
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from overlap_recompute.runtime.errors import Place


class Kind(enum.Enum):
    """What happened."""

    FORWARD = "forward"
    """A unit ran in the forward pass."""
    DROP = "drop"
    """What it saved was replaced by handles."""
    REPLAY_BEGIN = "replay begin"
    REPLAY_END = "replay end"
    REPLAY_FAILED = "replay failed"
    USE = "use"
    """Backward, or a replay that backward waits for, read one of its tensors for the first time."""
    RELEASE = "release"
    """The last handle of the unit died, and with it what was recomputed."""


class Event(NamedTuple):
    """One line of the journal."""

    kind: Kind
    unit: str
    layer: int
    microbatch: Hashable
    call: int
    hidden: bool
    """For replays: started early, by a fill, and not by backward."""
    time_ns: int
    """`time.perf_counter_ns()` on the host."""


class Journal:
    """Grows by one `Event` per happening; give it to a `Runtime` to switch it on."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, kind: Kind, place: Place, hidden: bool = False) -> None:
        """Append one event, stamped with the host's clock."""
        self.events.append(Event(kind, *place, hidden, time.perf_counter_ns()))

    def of(self, *kinds: Kind) -> Iterator[Event]:
        """The events of these kinds, in order."""
        return (event for event in self.events if event.kind in kinds)

    def clear(self) -> None:
        """Forget everything."""
        self.events.clear()
