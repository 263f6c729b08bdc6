"""Where a stage's time goes: sums over what it did."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from overlap_recompute.plan.actions import WAITS_FOR_RECEIVE
from overlap_recompute.simulator.passes import PP_WAIT
from overlap_recompute.simulator.stage_run import Done


@dataclass(slots=True, kw_only=True)
class Sums:
    """Of one stage."""

    compute_fs: int = 0
    hidden_fs: int = 0
    exposed_fs: int = 0
    busy_fs: int = 0
    """In passes, with their windows, and in replays between them."""
    windows: dict[str, list[int]] = field(default_factory=dict)
    """By kind: number, length, filled."""

    def add(self, rows: Iterable[Done], times: int = 1) -> None:
        """Add what was done, so many times."""
        for done in rows:
            outcome = done.outcome
            if outcome is not None:
                self.compute_fs += times * outcome.compute_fs
                self.hidden_fs += times * outcome.hidden_fs
                self.exposed_fs += times * outcome.exposed_fs
                self.busy_fs += times * outcome.length_fs
                for kind, *numbers in outcome.windows:
                    self._add_windows(kind, numbers, times)
            if done.action.kind in WAITS_FOR_RECEIVE and done.arrival_fs > done.begin_fs:
                filled_fs = outcome.hidden_fs if outcome is not None else 0
                self._add_windows(PP_WAIT, [1, done.arrival_fs - done.begin_fs, filled_fs], times)

    def _add_windows(self, kind: str, numbers: list[int], times: int) -> None:
        sums = self.windows.setdefault(kind, [0, 0, 0])
        for place, number in enumerate(numbers):
            sums[place] += times * number
