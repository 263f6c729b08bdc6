"""Bytes that replays of a chunk hold ahead of need, which a prefetch cap bounds: kept up to date replay by replay."""

from collections.abc import Sequence

from overlap_recompute.simulator.stage_model import Replay


class ChunkReplays:
    """The replays of a chunk, and what becomes of their bytes. Masks as in `Replay`.

    Args:
        replays: in fill order.
    """

    __slots__ = ("replays", "all_done", "_read_by")

    def __init__(self, replays: Sequence[Replay]) -> None:
        self.replays, self.all_done = tuple(replays), (1 << len(replays)) - 1
        self._read_by: list[list[tuple[int, int, int]]] = [[] for _ in replays]
        """For each replay what it reads of bytes that only replays read: (bit of their maker, bytes, all readers)."""
        for place, replay in enumerate(replays):
            for nbytes, readers in replay.passing:
                for reader in bits_of(readers):
                    self._read_by[reader].append((1 << place, nbytes, readers))

    def held_bytes(self, done: int, ahead: int) -> int:
        """Bytes of the replays in `ahead` that nothing has read when those in `done` have run."""
        return sum(_bytes_left(self.replays[place], done) for place in bits_of(ahead))

    def change_bytes(self, place: int, done: int, ahead: int) -> int:
        """By how much `held_bytes` changes with a replay.

        Args:
            place: of the replay.
            done: those that have run before it.
            ahead: those that are ahead of need; the replay itself if it is one of them.
        """
        bit = 1 << place
        change = _bytes_left(self.replays[place], done | bit) if ahead & bit else 0
        for maker, nbytes, readers in self._read_by[place]:
            if ahead & maker and not readers & ~(done | bit):
                change -= nbytes
        return change


def bits_of(mask: int) -> list[int]:
    """Places of the bits that are set, the lowest first."""
    places = []
    while mask:
        lowest = mask & -mask
        places.append(lowest.bit_length() - 1)
        mask ^= lowest
    return places


def _bytes_left(replay: Replay, done: int) -> int:
    """What a replay has brought back and nothing has read, when `done` have run."""
    left_bytes = replay.held_bytes
    for nbytes, readers in replay.passing:
        if readers & ~done:
            left_bytes += nbytes
    return left_bytes
