"""What backward needs next, and filling a communication window with it (docs/runtime.md, R10)."""

import enum
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from typing import NamedTuple

import torch

from overlap_recompute.runtime.calls import Microbatch, Phase, UnitCall
from overlap_recompute.runtime.replay import Replayer
from overlap_recompute.runtime.state import RuntimeState

UnitKey = tuple[int, str]
"""(layer, unit name)."""


class Stop(enum.Enum):
    """Why a fill ended."""

    CLOSED = "the window closed"
    EMPTY = "nothing is left to recompute"
    CAP = "the next unit does not fit under the cap of prefetched bytes"
    SHORT = "the next unit would run on for long after the window has closed"
    REFUSED = "not a place to recompute: a replay, an evaluation or a region without gradients"


class Fill(NamedTuple):
    """What one fill did."""

    units: int
    nbytes: int
    stop: Stop


class RecomputeQueue:
    """Calls in the order in which backward will ask for them.

    The microbatch whose backward runs comes first, then those whose forward has ended, in `backward_order`
    ("fifo": as in 1F1B, "lifo", or announced by `expect`). In a microbatch the latest call comes first, and before it
    what it depends on.
    """

    __slots__ = ("cap_bytes", "_state", "_replayer", "_by_key", "_ready", "_newest_first", "_expected")

    def __init__(self, state: RuntimeState, replayer: Replayer, cap_bytes: int | None, newest_first: bool) -> None:
        """`cap_bytes`: the most prefetched bytes at any time; None for no cap."""
        self.cap_bytes = cap_bytes
        self._state, self._replayer, self._newest_first = state, replayer, newest_first
        self._by_key: dict[Hashable, Microbatch] = {}
        self._ready: list[Microbatch] = []
        self._expected: tuple[Hashable, ...] = ()

    def begin(self, microbatch: Microbatch) -> None:
        """A forward pass begins."""
        self._by_key[microbatch.key] = microbatch

    def complete(self, microbatch: Microbatch) -> None:
        """A forward pass has ended: its backward pass may be prepared."""
        microbatch.close()
        self._ready.append(microbatch)

    def abandon(self, microbatch: Microbatch) -> None:
        """A forward pass has failed."""
        self._by_key.pop(microbatch.key, None)

    def clear(self) -> None:
        """The step has ended."""
        self._by_key.clear()
        self._ready.clear()
        self._expected = ()

    def expect(self, keys: Iterable[Hashable]) -> None:
        """Announce the order of the next backward passes of this step; microbatches that are not named follow."""
        self._expected = tuple(keys)

    def microbatches(self) -> tuple[Microbatch, ...]:
        """Those of this step, in forward order."""
        return tuple(self._by_key.values())

    def find(self, key: Hashable) -> Microbatch | None:
        """The microbatch of this key."""
        return self._by_key.get(key)

    def upcoming(self, only: Collection[UnitKey] | None = None) -> UnitCall | None:
        """The next call to materialize, all of whose arguments are there.

        Args:
            only: the units that a plan wants now, with what they depend on; None for all.
        """
        for microbatch in self._in_order():
            for call in _latest_first(microbatch):
                if only is None or (call.unit.layer, call.unit.name) in only:
                    while (source := call.pending_source()) is not None:
                        call = source
                    return call
        return None

    def fill(
        self,
        until: Callable[[], bool],
        budget_bytes: int | None = None,
        only: Collection[UnitKey] | None = None,
        left_ns: Callable[[], float] | None = None,
    ) -> Fill:
        """Materialize one unit after the other while a communication is in flight.

        Args:
            until: whether the window has closed; asked before each unit.
            budget_bytes: the most bytes that this fill may bring back; None for no limit but `cap_bytes`.
            only: see `upcoming`.
            left_ns: how long the window is expected to stay open. A unit that would run on after it is left for the
                next window where that costs less; see `_is_better_later`.

        Raises:
            ReplayError: a replay failed; whatever `until` raises.
        """
        if not self._may_fill():
            return Fill(0, 0, Stop.REFUSED)
        units, nbytes, stop = 0, 0, Stop.CLOSED
        while not until():
            call = self.upcoming(only)
            if call is None:
                stop = Stop.EMPTY
                break
            more_bytes = call.replay_bytes()
            if not self._fits(more_bytes, nbytes, budget_bytes):
                stop = Stop.CAP
                break
            if left_ns is not None and self._is_better_later(call, left_ns()):
                call.postponed, stop = True, Stop.SHORT
                break
            if units == 0:
                self._replayer.open_lane()
            self._replayer.run(call, hidden=True)
            units, nbytes = units + 1, nbytes + more_bytes
        return Fill(units, nbytes, stop)

    def _is_better_later(self, call: UnitCall, left_ns: float) -> bool:
        """Whether what would run after the window costs more than the risk that backward waits for the whole unit."""
        unit = call.unit
        is_next = self._state.ledger.prefetched_bytes == 0
        return not is_next and unit.replay_ns - left_ns > unit.late_share * unit.replay_ns

    def _fits(self, more_bytes: int, filled_bytes: int, budget_bytes: int | None) -> bool:
        prefetched_bytes = self._state.ledger.prefetched_bytes
        below_cap = self.cap_bytes is None or prefetched_bytes + more_bytes <= self.cap_bytes
        return below_cap and (budget_bytes is None or filled_bytes + more_bytes <= budget_bytes)

    def _may_fill(self) -> bool:
        state = self._state
        if state.replaying is not None or torch.is_inference_mode_enabled() or torch.compiler.is_compiling():
            return False
        # The forward of an autograd function runs without gradients, and so does backward: neither is an evaluation.
        if state.microbatch is not None:
            return state.microbatch.trains
        return torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1

    def _in_order(self) -> list[Microbatch]:
        # Those with nothing left go, so that a step of many microbatches costs no more for each of them.
        ready = self._ready = [m for m in self._ready if m.cursor > 0]
        if self._newest_first:
            ready = ready[::-1]
        if self._expected:
            rank = {key: number for number, key in enumerate(self._expected)}
            ready = sorted(ready, key=lambda m: rank.get(m.key, len(rank)))
        running = self._state.in_backward
        return sorted(ready, key=lambda m: m is not running)


def _latest_first(microbatch: Microbatch) -> Iterator[UnitCall]:
    """Calls to materialize, from the last one; what is dead or present at the end of the list is never seen again."""
    calls, position, trailing = microbatch.calls, microbatch.cursor, True
    while position > 0:
        call = calls[position - 1]()
        if call is not None and call.is_wanted():
            trailing = False
            yield call
            if call.phase is Phase.DROPPED:
                position -= 1
            continue
        position -= 1
        if trailing:
            microbatch.cursor = position
