"""What a layer keeps for backward as a table of storages, and the one rule that says which rows stay in memory.

Where its backward pass takes more, and where less, is a list of steps beside that table.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRow:
    """Storages of one layer and one microbatch that share a maker and the same readers."""

    name: str
    """What it is, for people."""
    nbytes: int
    """Of one microbatch on one rank."""
    maker: str | None
    """The unit that makes it; None: nothing that can be dropped."""
    held: bool
    """Whether autograd saves it in any case."""
    replay_readers: tuple[str, ...] = ()
    """Units that take it as an argument: their replays need it when they are dropped."""

    def is_kept(self, dropped: Set[str]) -> bool:
        """Whether it stays in memory from forward to backward when these units are dropped."""
        return self.maker not in dropped and self.is_wanted(dropped)

    def is_brought_back(self, dropped: Set[str]) -> bool:
        """Whether a replay makes it again when these units are dropped."""
        return self.maker in dropped and self.is_wanted(dropped)

    def is_wanted(self, dropped: Set[str]) -> bool:
        """Whether backward or a replay reads it when these units are dropped."""
        return self.held or any(unit in dropped for unit in self.replay_readers)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStep:
    """A step of a layer's backward pass as memory sees it: units are read at its beginning, if at all."""

    needs: tuple[str, ...]
    """Units whose results backward reads: dropped ones are replayed at the beginning."""
    start_bytes: int
    """At the beginning, while replays run, besides what is kept: gradients on their way."""
    peak_bytes: int
    """The most at any time of the step."""
    freed_bytes: int = 0
    """Held storages of no unit that are gone."""
    gradient_bytes: int = 0
    """The part of `start_bytes` and `peak_bytes` that is the gradient of the layer's output; 0 when it is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRoom:
    """What a unit takes while it runs."""

    unit: str
    """By the name that policies use."""
    nbytes: int
    """Most that it holds at one time besides its arguments and the held storages that it makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardMemory:
    """What a layer's backward pass takes besides what is kept, step by step."""

    steps: tuple[MemoryStep, ...]
    """In the order in which they run."""
    replays: tuple[ReplayRoom, ...] = ()
    """Of units that take more than what they make."""


def kept_bytes_of(rows: Iterable[StorageRow], dropped: Set[str]) -> int:
    """Bytes that a layer keeps for one microbatch when `dropped` units are dropped."""
    return sum(row.nbytes for row in rows if row.is_kept(dropped))


def brought_back_bytes_of(rows: Iterable[StorageRow], dropped: Set[str], units: Set[str] | None = None) -> int:
    """Bytes that replays of `units` (None: of all dropped ones) bring back for one microbatch of a layer."""
    makers = dropped if units is None else units
    return sum(row.nbytes for row in rows if row.maker in makers and row.is_brought_back(dropped))
