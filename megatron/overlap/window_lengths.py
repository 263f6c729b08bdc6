"""How long a window will stay open: as long as the same window of the last steps did.

comm: | all_reduce ........................... |                 expected end, from earlier steps
comp: | R(L7.linear_fc1)  R(L7.activation)  ?  |                 `?`: is it worth starting another unit?

Steps of a training run do the same in the same order, so the n-th window of a kind has its like in every step.
"""

import statistics
from collections import deque

from overlap_recompute.plan.windows import WindowKind

REMEMBERED = 3
"""Steps from which a length is expected."""

Place = tuple[WindowKind, int]
"""Kind, and number among those of its kind in a step."""


class WindowLengths:
    """Counts the windows of a step and remembers how long each one's communication took."""

    __slots__ = ("_numbers", "_known")

    def __init__(self) -> None:
        self._numbers: dict[WindowKind, int] = {}
        self._known: dict[Place, deque[int]] = {}

    def begin_step(self) -> None:
        """The windows that come next are the first of a step."""
        self._numbers.clear()

    def next_place(self, kind: WindowKind) -> Place:
        """The place of the window that opens now."""
        number = self._numbers.get(kind, 0)
        self._numbers[kind] = number + 1
        return kind, number

    def expected_ns(self, place: Place) -> float | None:
        """How long the communication will take; None where nothing is known, and for waits for another stage.

        A collective takes as long as it did. A wait for a stage is the difference of two stages' work and varies with
        both; a unit that outlives it does not cost the stage more than the same unit on demand, and one that was left
        costs all of it. So these are filled to their end.
        """
        known = self._known.get(place)
        return statistics.median(known) if known and place[0] is not WindowKind.PP_WAIT else None

    def learn(self, place: Place, length_ns: int) -> None:
        """The communication took so long, from the opening of the window."""
        known = self._known.get(place)
        if known is None:
            known = self._known[place] = deque(maxlen=REMEMBERED)
        known.append(length_ns)
