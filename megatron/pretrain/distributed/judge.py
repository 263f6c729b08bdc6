"""Who was lost first? Pure rules over what the hub hears; the clock comes in as an argument.

NOTE [ First cause ]
One lost rank makes the others fail too: their collectives report a closed connection. The judge names the first cause:
1. A connection that ends without goodbye, or an error that cannot come from another rank's end, decides at once.
2. An error that may only echo another rank's end (a collective that failed) waits `settle_s` for rule 1 to speak.
   If nothing does, the collective itself failed (a timeout, a mismatch): the first rank that reported it is named,
   together with the ranks that report nothing, since one of those is where the others wait.
3. A rank that was not heard for `timeout_s` is silent.
4. A judge that itself stood still (a suspended job, a held interpreter lock) heard nobody and blames nobody: after a
   gap in its own ticks every clock starts anew.
"""

from dataclasses import dataclass

from megatron.pretrain.distributed.verdict import Cause, Verdict

DIED_DETAIL = (
    "its process ended without a word - killed (out of memory?), crashed, or its host went down; look at its own output"
)
LISTED_RANKS = 16


class OwnGaps:
    """Notices when the process that asks was not running, by the distance of its own ticks."""

    def __init__(self, timeout_s: float, now_s: float) -> None:
        self._limit_s, self._last_s = timeout_s / 2, now_s

    def after_gap(self, now_s: float) -> bool:
        """Whether more than half the timeout has passed since the last call."""
        gap_s, self._last_s = now_s - self._last_s, now_s
        return gap_s > self._limit_s


def silent_detail(silent_s: float) -> str:
    """What is known of a rank that stopped talking."""
    return f"no sign of life for {silent_s:.0f} s - its process is stopped or stuck, or its host is unreachable"


@dataclass(slots=True, kw_only=True)
class _Member:
    heard_s: float
    place: str = "not connected yet"
    finished: bool = False  # everything it had to do is done
    quiet: bool = False  # said that it may be silent for a while
    left: bool = False  # said goodbye
    echo: str | None = None  # an error that may only echo another rank's end


class Judge:
    """Collects what is known of all ranks and passes one verdict, the first cause (see the NOTE above).

    Args:
        world_size: number of ranks; all are expected to be heard from the start.
        timeout_s: silence that counts as a loss.
        settle_s: how long an error that may be an echo waits for a better cause.
        now_s: the time now; any clock that only runs forward.
    """

    def __init__(self, *, world_size: int, timeout_s: float, settle_s: float, now_s: float) -> None:
        self._members = [_Member(heard_s=now_s) for _ in range(world_size)]
        self._timeout_s, self._settle_s = timeout_s, settle_s
        self._gaps = OwnGaps(timeout_s, now_s)
        self._first_echo: tuple[int, float] | None = None
        self._unfinished = world_size
        self.verdict: Verdict | None = None

    @property
    def all_finished(self) -> bool:
        """Whether every rank has said that its work is done."""
        return self._unfinished == 0

    def heard(self, rank: int, now_s: float) -> None:
        """Something arrived from `rank`."""
        self._members[rank].heard_s = now_s

    def placed(self, rank: int, place: str) -> None:
        """`rank` says where it runs."""
        self._members[rank].place = place

    def finished(self, rank: int) -> None:
        """`rank` has done its work and waits for the others."""
        member = self._members[rank]
        self._unfinished -= not member.finished
        member.finished = True

    def quiet(self, rank: int, quiet: bool, now_s: float) -> None:
        """From now on `rank` may, or may no longer, be silent. It may not die."""
        member = self._members[rank]
        member.quiet, member.heard_s = quiet, now_s

    def left(self, rank: int) -> None:
        """`rank` said goodbye: whatever its connection does now is fine."""
        self._members[rank].left = True

    def failed(self, rank: int, cause: Cause, detail: str, *, echo: bool, now_s: float) -> None:
        """`rank` reports the error that ends it."""
        if not echo:
            self._decide(rank, cause, detail)
            return
        self._members[rank].echo = detail
        if self._first_echo is None:
            self._first_echo = (rank, now_s)

    def ended(self, rank: int, detail: str = DIED_DETAIL) -> None:
        """The connection of `rank` is gone."""
        member = self._members[rank]
        if member.echo is None and not member.left:
            self._decide(rank, Cause.DIED, detail)

    def tick(self, now_s: float) -> None:
        """Look at the clocks; call at least once a second."""
        if self._gaps.after_gap(now_s):
            for member in self._members:
                member.heard_s = now_s
        if self._first_echo is not None and now_s - self._first_echo[1] >= self._settle_s:
            rank = self._first_echo[0]
            self._decide(rank, Cause.FAILED, f"{self._members[rank].echo}{self._others()}")
        for rank, member in enumerate(self._members):
            expected = not (member.quiet or member.left or member.echo is not None)
            if expected and now_s - member.heard_s > self._timeout_s:
                self._decide(rank, Cause.SILENT, silent_detail(now_s - member.heard_s))

    def _others(self) -> str:
        quiet = [str(rank) for rank, member in enumerate(self._members) if member.echo is None]
        if not 0 < len(quiet) <= LISTED_RANKS:
            return ""
        return f" [no error on rank(s) {', '.join(quiet)}, where the others may be waiting]"

    def _decide(self, rank: int, cause: Cause, detail: str) -> None:
        if self.verdict is None:
            self.verdict = Verdict(rank=rank, place=self._members[rank].place, cause=cause, detail=detail)
