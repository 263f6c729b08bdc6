"""What a layer keeps for backward as a table of storages, and the one rule that says which rows stay in memory."""

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
        return self.maker not in dropped and self._is_wanted(dropped)

    def is_brought_back(self, dropped: Set[str]) -> bool:
        """Whether a replay makes it again when these units are dropped."""
        return self.maker in dropped and self._is_wanted(dropped)

    def _is_wanted(self, dropped: Set[str]) -> bool:
        return self.held or any(unit in dropped for unit in self.replay_readers)


def kept_bytes_of(rows: Iterable[StorageRow], dropped: Set[str]) -> int:
    """Bytes that a layer keeps for one microbatch when `dropped` units are dropped."""
    return sum(row.nbytes for row in rows if row.is_kept(dropped))


def brought_back_bytes_of(rows: Iterable[StorageRow], dropped: Set[str], units: Set[str] | None = None) -> int:
    """Bytes that replays of `units` (None: of all dropped ones) bring back for one microbatch of a layer."""
    makers = dropped if units is None else units
    return sum(row.nbytes for row in rows if row.maker in makers and row.is_brought_back(dropped))
