"""Runs the lists of all ranks in one process, in abstract slots of time: for pictures, and to find deadlocks.

NOTE [ time in slots ]
1. A forward pass, a backward pass and a recompute take a fixed number of slots; everything else takes none, except that
   a message arrives `transfer_slots` after both its send and its receive have started (a rendezvous: a send that nobody
   receives does not end).
2. A list without sends and receives runs too: a pass then starts as soon as the neighbour stage has the tensor.
3. R fills the wait that follows it and stops at its end. What is left when backward comes is done first, exposed.
4. What a rank may do next depends on what others have done, never on who was faster. So the order in which this program
   visits the ranks does not matter, and ranks that are stuck here are stuck in a real run.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from overlap_recompute.plan.actions import COMPUTE, POST_OF, WAIT_OF, WAITS_FOR_RECEIVE, Action, Grid, Kind
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.schedules.messages import MOVES, Message, message_of
from overlap_recompute.schedules.shape import PipelineShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """How long things take, in slots."""

    forward_slots: int = 1
    """A forward pass of one chunk on one microbatch."""
    backward_slots: int = 2
    """A backward pass without recompute."""
    recompute_slots: int = 0
    """The recompute that each backward pass needs; 0: nothing was dropped."""
    transfer_slots: int = 0
    """From the moment when both ends have started a message until it is there."""

    def __post_init__(self) -> None:
        for name, least in (("forward", 1), ("backward", 1), ("recompute", 0), ("transfer", 0)):
            value = getattr(self, f"{name}_slots")
            if value < least:
                raise ConfigError(f"{value} slots for {name}", f"at least {least}", "choose a larger number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time in which a rank computes."""

    action: Action
    """F, B, or R; recompute that a backward pass had to do first is an R of its own."""
    start_slot: int
    """First slot."""
    end_slot: int
    """Slot after the last one."""
    hidden: bool = False
    """Of an R: it lay in a wait, where the rank would have done nothing."""

    @property
    def slots(self) -> int:
        """Length."""
        return self.end_slot - self.start_slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A rank that cannot go on."""

    rank: int
    """Pipeline rank."""
    position: int
    """Index in its list of the action that waits for ever."""
    awaits: str
    """What it waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What came of a run."""

    spans: tuple[tuple[Span, ...], ...]
    """For each rank its spans, in order."""
    blocked: tuple[Blocked, ...]
    """Ranks that did not reach the end of their list; empty when all did."""


# What a rank may wait for: one end of a message (True: the source's), or a pass of a stage on a microbatch.
_Event = tuple[Message, bool] | tuple[Kind, int, int]


@dataclass(slots=True, kw_only=True)
class _Rank:
    """Where one rank stands."""

    position: int = 0
    now_slot: int = 0
    awaits: _Event | None = None
    left_slots: dict[tuple[int, int], int] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)


class _Run:
    """One execution: the clock and list position of each rank, and when each event happened."""

    def __init__(self, grid: Grid, shape: PipelineShape, costs: Costs) -> None:
        self.grid, self.shape, self.costs = grid, shape, costs
        self.ranks = tuple(_Rank() for _ in grid)
        self.happened_slot: dict[_Event, int] = {}
        self.waiting: dict[_Event, list[int]] = {}
        self.ready: deque[int] = deque(range(len(grid)))
        self.has_messages = any(action.kind in MOVES for row in grid for action in row)

    def finish(self) -> Execution:
        """Run until every rank is at its end or waits for something that will not happen."""
        while self.ready:
            self._advance(self.ready.popleft())
        blocked = tuple(
            Blocked(rank=number, position=rank.position, awaits=_describe(rank.awaits, self.shape))
            for number, rank in enumerate(self.ranks)
            if rank.awaits is not None
        )
        return Execution(spans=tuple(tuple(rank.spans) for rank in self.ranks), blocked=blocked)

    def _advance(self, number: int) -> None:
        rank, row = self.ranks[number], self.grid[number]
        rank.awaits = None
        while rank.position < len(row):
            action = row[rank.position]
            missing = next((event for event in self._needs(number, action) if event not in self.happened_slot), None)
            if missing is not None:
                rank.awaits = missing
                self.waiting.setdefault(missing, []).append(number)
                return
            _HANDLERS[action.kind](self, number, action)
            rank.position += 1

    def _needs(self, number: int, action: Action) -> Iterator[_Event]:
        """What must have happened before the rank can do `action`."""
        if action.kind in COMPUTE and not self.has_messages:
            yield from self._neighbour(number, action)
        if action.kind is Kind.R:
            wait = self._wait_after(number)
            action = wait or action
        if action.kind in POST_OF:
            message = self._message(number, action)
            yield message, True
            yield message, False

    def _neighbour(self, number: int, action: Action) -> Iterator[_Event]:
        """The pass of the next stage that this one gets its tensor from, if it gets any."""
        stage = self.shape.stage(number, action.chunk) + (-1 if action.kind is Kind.F else 1)
        if 0 <= stage < self.shape.stages:
            yield action.kind, stage, action.microbatch

    def _message(self, number: int, action: Action) -> Message:
        message = message_of(action, number, self.shape)
        assert message is not None, f"{action} of rank {number} has no peer; the validator refuses such lists"
        return message

    def _wait_after(self, number: int) -> Action | None:
        """The wait for a receive that ends the gap in which the rank stands, if it stands in one."""
        row, position = self.grid[number], self.ranks[number].position + 1
        while position < len(row) and row[position].kind in _IN_A_GAP:
            position += 1
        found = position < len(row) and row[position].kind in WAITS_FOR_RECEIVE
        return row[position] if found else None

    def _arrival_slot(self, message: Message) -> int:
        return max(self.happened_slot[message, True], self.happened_slot[message, False]) + self.costs.transfer_slots

    def _note(self, event: _Event, slot: int) -> None:
        self.happened_slot[event] = slot
        self.ready.extend(self.waiting.pop(event, ()))

    def _spend(self, number: int, action: Action, slots: int, hidden: bool = False) -> None:
        rank = self.ranks[number]
        if slots:
            end_slot = rank.now_slot + slots
            rank.spans.append(Span(action=action, start_slot=rank.now_slot, end_slot=end_slot, hidden=hidden))
            rank.now_slot = end_slot

    def compute(self, number: int, action: Action) -> None:
        """F or B: wait for the neighbour in lists without messages, finish the recompute, run."""
        rank = self.ranks[number]
        arrivals = [self.happened_slot[event] + self.costs.transfer_slots for event in self._needs(number, action)]
        rank.now_slot = max([rank.now_slot, *arrivals])
        backward = action.kind is Kind.B
        if backward:
            self._spend(number, action.as_kind(Kind.R), self._left_slots(rank, action))
        self._spend(number, action, self.costs.backward_slots if backward else self.costs.forward_slots)
        self._note((action.kind, self.shape.stage(number, action.chunk), action.microbatch), rank.now_slot)

    def recompute(self, number: int, action: Action) -> None:
        """R: as much as the wait leaves room for; all of it where no wait follows."""
        rank, wait = self.ranks[number], self._wait_after(number)
        left = slots = self._left_slots(rank, action)
        if wait is not None:
            room = self._arrival_slot(self._message(number, wait)) - rank.now_slot
            slots = max(0, min(left, room))
        rank.left_slots[action.chunk, action.microbatch] = left - slots
        self._spend(number, action, slots, hidden=wait is not None)

    def _left_slots(self, rank: _Rank, action: Action) -> int:
        return rank.left_slots.get((action.chunk, action.microbatch), self.costs.recompute_slots)

    def post(self, number: int, action: Action) -> None:
        """SEND or RECV: one end of the message is there."""
        message = self._message(number, action)
        self._note((message, action.kind in _SENDS), self.ranks[number].now_slot)

    def wait(self, number: int, action: Action) -> None:
        """WAIT: on to the moment of arrival."""
        rank = self.ranks[number]
        rank.now_slot = max(rank.now_slot, self._arrival_slot(self._message(number, action)))


_SENDS = frozenset({Kind.SEND_F, Kind.SEND_B})
_IN_A_GAP = frozenset({Kind.R, Kind.WAIT_SEND_F, Kind.WAIT_SEND_B})

_HANDLERS: Mapping[Kind, Callable[[_Run, int, Action], None]] = {
    Kind.F: _Run.compute,
    Kind.B: _Run.compute,
    Kind.R: _Run.recompute,
    **dict.fromkeys(WAIT_OF, _Run.post),
    **dict.fromkeys(POST_OF, _Run.wait),
}


def _describe(event: _Event | None, shape: PipelineShape) -> str:
    assert event is not None
    if len(event) == 2:
        message, from_source = event
        verb, rank = ("sends", message.source_rank) if from_source else ("receives", message.destination_rank)
        return f"rank {rank}, which never {verb} the {message}"
    kind, stage, microbatch = event
    action = Action(kind=kind, chunk=stage // shape.ranks, microbatch=microbatch)
    return f"rank {stage % shape.ranks}, which never runs {action}"


def execute(grid: Grid, shape: PipelineShape, costs: Costs) -> Execution:
    """Run the lists; see NOTE [ time in slots ].

    Args:
        grid: lists that `overlap_recompute.schedules.validation` found no other fault in.
        shape: what `shape_of(grid)` says.
        costs: length of each action.
    """
    return _Run(grid, shape, costs).finish()
