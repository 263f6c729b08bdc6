"""Where one stage stands in its list: its clock, and what has been replayed for which microbatch."""

from bisect import bisect
from typing import NamedTuple

from overlap_recompute.plan.actions import WAITS_FOR_RECEIVE, Action, Actions, Kind
from overlap_recompute.simulator.passes import PP_WAIT, Outcome, Passes, Pending, Progress


class Done(NamedTuple):
    """A pass, or the end of a wait."""

    action: Action
    begin_fs: int
    end_fs: int
    arrival_fs: int
    """Of a wait: when the message was there; of a pass its begin."""
    outcome: Outcome | None
    """Of a pass, and of a wait that was filled."""
    before: Progress
    """Microbatches between forward and backward pass at the begin."""


class StageRun:
    """A stage on its way through its list.

    Args:
        passes: of the stage.
        row: the list; only the order of its backward passes is looked at.
    """

    __slots__ = ("passes", "now_fs", "progress", "done", "_turns", "_order", "_is_filled")

    def __init__(self, passes: Passes, row: Actions) -> None:
        self.passes, self.now_fs = passes, 0
        self.progress: Progress = ()
        self.done: list[Done] = []
        backward = (action for action in row if action.kind is Kind.B)
        self._turns = {(action.chunk, action.microbatch): turn for turn, action in enumerate(backward)}
        """When each microbatch of a chunk has its backward pass."""
        self._order: list[int] = []
        """The turns of `progress`."""
        self._is_filled = False
        """Whether an R stands before the wait that comes."""

    def forward(self, action: Action) -> None:
        """F: from its end on the microbatch may be replayed for."""
        outcome = self.passes.forward(action.chunk, self.progress)
        self._add(action, outcome)
        turn = self._turns[action.chunk, action.microbatch]
        place = bisect(self._order, turn)
        self._order.insert(place, turn)
        entries = outcome.progress
        self.progress = (*entries[:place], Pending(action.chunk, 0), *entries[place:])

    def backward(self, action: Action) -> None:
        """B: of the microbatch whose turn it is."""
        assert self._order[0] == self._turns[action.chunk, action.microbatch]
        outcome = self.passes.backward(self.progress)
        self._add(action, outcome)
        self._order.pop(0)
        self.progress = outcome.progress

    def recompute(self, action: Action) -> None:
        """R: the wait that comes may be filled."""
        self._is_filled = True

    def wait(self, action: Action, arrival_fs: int) -> None:
        """WAIT: on to the moment of arrival, or to the end of the last replay."""
        begin_fs, before, outcome = self.now_fs, self.progress, None
        room_fs = arrival_fs - begin_fs
        is_window = action.kind in WAITS_FOR_RECEIVE
        if room_fs > 0:
            self.now_fs = arrival_fs
            if is_window and self._is_filled and PP_WAIT in self.passes.stage.filled_kinds:
                outcome = self.passes.wait(before, room_fs)
                self.now_fs = max(arrival_fs, begin_fs + outcome.length_fs)
                self.progress = outcome.progress
        self.done.append(Done(action, begin_fs, self.now_fs, arrival_fs, outcome, before))
        self._is_filled &= not is_window

    def _add(self, action: Action, outcome: Outcome) -> None:
        begin_fs = self.now_fs
        self.now_fs += outcome.length_fs
        self.done.append(Done(action, begin_fs, self.now_fs, begin_fs, outcome, self.progress))
        self._is_filled = False
