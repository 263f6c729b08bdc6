"""Adds sends, receives and their waits to a schedule of forward and backward passes.

NOTE [ where transfers start and end ]
1. A receive starts before the peer's send does, so that a transfer begins when the tensor is ready, and at least one
   pass before the pass that needs it, so that it can run beside that pass.
2. A receive is waited for directly before the pass that needs it. That wait is the `pp_wait` window.
3. A send starts directly after its pass, behind the receives of that place.
4. A send is waited for late: before the pass that follows the next send of the same kind. By then it has ended, since
   its receive had started first (1), and at most two outputs are held for sending. An output's send is waited for
   before its own backward pass at the latest, because the output may be freed by then (and its gradient is there, so
   it has arrived).
5. Between two ranks the receives start in the order of the sends, so no tags are needed.

   rank r:    F3 | RECV_F5  SEND_F3  [window] WAIT_RECV_B0 | B0 | RECV_B1  SEND_B0  [window] WAIT_RECV_F4 | F4 | ...
   transfer:          | F3 to r+1 ....  | ..... B0 from r+1 |
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from overlap_recompute.plan.actions import COMPUTE, WAIT_OF, Action, Actions, Grid, Kind, ScheduleError
from overlap_recompute.schedules.execution import Costs, Execution, Span, execute
from overlap_recompute.schedules.messages import MOVES, Message, message_of
from overlap_recompute.schedules.shape import PipelineShape, shape_of

_RECEIVE_FOR = {Kind.F: Kind.RECV_F, Kind.B: Kind.RECV_B}
_SEND_AFTER = {Kind.F: Kind.SEND_F, Kind.B: Kind.SEND_B}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Incoming:
    """A receive that is to be placed."""

    receive: Action
    sent_slot: int
    """When the sender's pass ends."""
    needed_at: int
    """Index of the pass that needs it, among the rank's passes."""


def with_communication(grid: Grid, costs: Costs | None = None) -> Grid:
    """The same passes with their communication; see NOTE [ where transfers start and end ].

    Args:
        grid: forward and backward passes only, in an order that can be run.
        costs: what to go by in "before the peer's send"; `Costs()` unless given. Right for any costs, best for these.

    Raises:
        ScheduleError: there is communication or recompute already, or the order cannot be run.
    """
    foreign = [action for row in grid for action in row if action.kind not in COMPUTE]
    if foreign:
        raise ScheduleError(
            f"{foreign[0]} in lists that are to get their communication", "F and B only", "call passes_only() first"
        )
    shape = shape_of(grid)
    execution = execute(grid, shape, replace(costs or Costs(), recompute_slots=0))
    if execution.blocked:
        place = execution.blocked[0]
        raise ScheduleError(
            f"lists that block: rank {place.rank} waits at {grid[place.rank][place.position]} for {place.awaits}",
            "an order in which every pass finds its tensor",
            "show the lists to validate(), which draws the place",
        )
    sent_slot = _sent_slots(shape, execution)
    return tuple(
        _with_receives_at(shape, rank, row, _places(row, shape, rank, execution.spans[rank], sent_slot))
        for rank, row in enumerate(grid)
    )


def passes_only(grid: Grid) -> Grid:
    """The forward and backward passes of `grid`, without communication and recompute."""
    return tuple(tuple(action for action in row if action.kind in COMPUTE) for row in grid)


def has_communication(grid: Grid) -> bool:
    """Whether there is any send, receive or wait."""
    return any(action.kind in MOVES for row in grid for action in row)


def _sent_slots(shape: PipelineShape, execution: Execution) -> dict[Message, int]:
    """When the tensor of each message is there to be sent."""
    ends = (
        (message_of(span.action.as_kind(_SEND_AFTER[span.action.kind]), rank, shape), span.end_slot)
        for rank, spans in enumerate(execution.spans)
        for span in spans
    )
    return {message: end_slot for message, end_slot in ends if message is not None}


def _places(
    row: Actions, shape: PipelineShape, rank: int, spans: tuple[Span, ...], sent_slot: Mapping[Message, int]
) -> dict[int, list[Action]]:
    """Which receives start before each pass of `rank`, by the index of the pass."""
    from_peer: dict[int, list[_Incoming]] = defaultdict(list)
    for index, action in enumerate(row):
        receive = action.as_kind(_RECEIVE_FOR[action.kind])
        message = message_of(receive, rank, shape)
        if message is not None:
            incoming = _Incoming(receive=receive, sent_slot=sent_slot[message], needed_at=index)
            from_peer[message.source_rank].append(incoming)
    free_slots = [0, *(span.end_slot for span in spans)]
    starts: dict[int, list[Action]] = defaultdict(list)
    for peer in sorted(from_peer):
        for place, incoming in _in_order_of_sends(from_peer[peer], free_slots):
            starts[place].append(incoming.receive)
    return starts


def _in_order_of_sends(incoming: list[_Incoming], free_slots: list[int]) -> Iterator[tuple[int, _Incoming]]:
    """Where each receive from one peer starts; none starts after one whose message is sent later."""
    by_send = sorted(incoming, key=lambda one: one.sent_slot)
    latest = len(free_slots)
    places = []
    for one in reversed(by_send):
        before_send = bisect_right(free_slots, one.sent_slot) - 1
        latest = min(latest, before_send, max(0, one.needed_at - 1))
        places.append((latest, one))
    yield from reversed(places)


def _with_receives_at(shape: PipelineShape, rank: int, row: Actions, starts: dict[int, list[Action]]) -> Actions:
    """One rank's list, given the receives that start before each pass."""
    result: list[Action] = []
    unfinished: dict[Kind, Action] = {}
    for index, action in enumerate(row):
        result += starts.get(index, ())
        overdue = _start_send(row[index - 1], rank, shape, result, unfinished) if index else ()
        receive = action.as_kind(_RECEIVE_FOR[action.kind])
        if message_of(receive, rank, shape) is not None:
            result.append(receive.as_kind(WAIT_OF[receive.kind]))
        result += [*overdue, *_end_send_before(action, unfinished), action]
    result += _start_send(row[-1], rank, shape, result, unfinished) if row else ()
    return (*result, *(send.as_kind(WAIT_OF[send.kind]) for send in unfinished.values()))


def _end_send_before(action: Action, unfinished: dict[Kind, Action]) -> Actions:
    """The wait for the output's send that a backward pass needs, if nothing has waited for it."""
    own = action.as_kind(Kind.SEND_F)
    if action.kind is Kind.F or unfinished.get(Kind.SEND_F) != own:
        return ()
    return (unfinished.pop(Kind.SEND_F).as_kind(Kind.WAIT_SEND_F),)


def _start_send(
    action: Action, rank: int, shape: PipelineShape, result: list[Action], unfinished: dict[Kind, Action]
) -> Actions:
    """Append the send of what a pass put out, if it has a peer; returns the wait for the send before it."""
    send = action.as_kind(_SEND_AFTER[action.kind])
    if message_of(send, rank, shape) is None:
        return ()
    earlier = unfinished.pop(send.kind, None)
    result.append(send)
    unfinished[send.kind] = send
    return () if earlier is None else (earlier.as_kind(WAIT_OF[send.kind]),)
