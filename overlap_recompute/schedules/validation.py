"""Says whether a schedule can be run, and shows the places where it cannot."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from overlap_recompute.plan.actions import COMPUTE, POST_OF, WAIT_OF, Action, Grid, Kind, ScheduleError
from overlap_recompute.schedules.communication import has_communication
from overlap_recompute.schedules.execution import Costs, execute
from overlap_recompute.schedules.messages import MOVES, Message, Queues, message_of, queue_of
from overlap_recompute.schedules.pictures import ERROR_MARK, draw_lists
from overlap_recompute.schedules.shape import PipelineShape, shape_of

MAX_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong."""

    rank: int
    """Pipeline rank."""
    position: int
    """Index in the rank's list; the list's length when something is missing at its end."""
    problem: str
    """What is wrong there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lists:
    """The schedule with what several checks look up."""

    grid: Grid
    shape: PipelineShape
    at: tuple[Mapping[Action, int], ...]
    """For each rank the index of the first occurrence of each action."""
    trains: bool
    """Whether there is any backward pass."""
    moves: bool
    """Whether there is any communication."""

    def actions(self) -> Iterator[tuple[int, int, Action]]:
        """Every (rank, index, action)."""
        for rank, row in enumerate(self.grid):
            for position, action in enumerate(row):
                yield rank, position, action

    def after(self, rank: int, one: Action, other: Action) -> bool:
        """Whether both are in the rank's list and `one` is behind `other`."""
        at = self.at[rank]
        return one in at and other in at and at[one] > at[other]


_Check = Callable[[_Lists], Iterator[Fault]]


def validate(grid: Grid, *, shape: PipelineShape | None = None, queues: Queues = Queues.PER_DIRECTION) -> Grid:
    """Return `grid` if it can be run.

    Args:
        grid: one list for each rank, with or without communication. Without any backward pass it is an evaluation.
        shape: the size that it should have; by default the smallest that holds its actions.
        queues: which messages the transport delivers in order, whatever their name.

    Raises:
        ScheduleError: with each fault and a drawing where `<-- ERROR HERE` marks its place.
    """
    faults = find_faults(grid, shape=shape, queues=queues)
    if not faults:
        return grid
    shown = faults[:MAX_SHOWN]
    lines = [f"rank {fault.rank}, step {fault.position}: {fault.problem}" for fault in shown]
    lines += [f"... and {len(faults) - len(shown)} more"] if len(faults) > len(shown) else []
    drawing = draw_lists(grid, {(fault.rank, fault.position): ERROR_MARK for fault in shown})
    raise ScheduleError(
        f"{len(faults)} fault(s) in a schedule, the first on rank {faults[0].rank}: {faults[0].problem}",
        "lists that every rank can run to their end",
        "mend the marked places",
        "\n".join([*lines, "", drawing]),
    )


def find_faults(
    grid: Grid, *, shape: PipelineShape | None = None, queues: Queues = Queues.PER_DIRECTION
) -> tuple[Fault, ...]:
    """What is wrong with `grid`, by rank and place; the arguments are those of `validate`.

    Faults of a list by itself come first; the order of messages is looked at when there are none, and deadlocks when
    that is right too.
    """
    wanted = shape or shape_of(grid)
    if wanted.ranks != len(grid):
        raise ScheduleError(f"{len(grid)} lists", f"one for each of the {wanted.ranks} ranks", "add or remove lists")
    outside = tuple(_outside(grid, wanted))
    if outside:
        return outside
    lists = _Lists(
        grid=grid,
        shape=wanted,
        at=tuple({action: index for index, action in reversed(list(enumerate(row)))} for row in grid),
        trains=any(action.kind is Kind.B for row in grid for action in row),
        moves=has_communication(grid),
    )
    found = [fault for check in _CHECKS for fault in check(lists)]
    found = found or list(_messages_out_of_order(lists, queues))
    found = found or list(_deadlocks(lists))
    return tuple(sorted(found, key=lambda fault: (fault.rank, fault.position)))


def _outside(grid: Grid, shape: PipelineShape) -> Iterator[Fault]:
    for rank, row in enumerate(grid):
        for position, action in enumerate(row):
            if action.chunk >= shape.chunks or action.microbatch >= shape.microbatches:
                limits = f"{shape.chunks} chunk(s) and {shape.microbatches} microbatch(es)"
                yield Fault(rank=rank, position=position, problem=f"{action} is outside of {limits}")


def _twice(lists: _Lists) -> Iterator[Fault]:
    for rank, position, action in lists.actions():
        if action.kind is not Kind.R and lists.at[rank][action] != position:
            yield Fault(rank=rank, position=position, problem=f"{action} is there twice")


_NEEDED_BY: Mapping[Kind, tuple[Kind, ...]] = {Kind.F: (Kind.SEND_F, Kind.R, Kind.B), Kind.B: (Kind.SEND_B,)}
"""Which actions make no sense without a pass: the first of them is where a missing pass is missed."""


def _missing_passes(lists: _Lists) -> Iterator[Fault]:
    shape = lists.shape
    kinds = (Kind.F, Kind.B) if lists.trains else (Kind.F,)
    for rank, row in enumerate(lists.grid):
        at = lists.at[rank]
        for chunk in range(shape.chunks):
            for microbatch in range(shape.microbatches):
                for kind in kinds:
                    action = Action(kind=kind, chunk=chunk, microbatch=microbatch)
                    if action not in at:
                        places = [at[action.as_kind(k)] for k in _NEEDED_BY[kind] if action.as_kind(k) in at]
                        place = min(places, default=len(row))
                        yield Fault(rank=rank, position=place, problem=f"{action} is missing")


def _passes_out_of_order(lists: _Lists) -> Iterator[Fault]:
    for rank, position, action in lists.actions():
        forward, backward = action.as_kind(Kind.F), action.as_kind(Kind.B)
        at = lists.at[rank]
        if action.kind in (Kind.B, Kind.R) and position < at.get(forward, -1):
            yield Fault(rank=rank, position=position, problem=f"{action} comes before {forward}")
        if action.kind is Kind.R and position > at.get(backward, len(lists.grid[rank])):
            yield Fault(rank=rank, position=position, problem=f"{action} comes after {backward}, too late to be of use")
        if action.kind is Kind.R and not lists.trains:
            yield Fault(rank=rank, position=position, problem=f"{action} has no backward pass to prepare")


def _transfers_without_peer(lists: _Lists) -> Iterator[Fault]:
    for rank, position, action in lists.actions():
        if action.kind in MOVES and message_of(action, rank, lists.shape) is None:
            yield Fault(rank=rank, position=position, problem=f"{action} has no peer: the pipeline ends here")


_TENSORS_OF: Mapping[Kind, tuple[Kind, Kind]] = {
    Kind.F: (Kind.WAIT_RECV_F, Kind.SEND_F),
    Kind.B: (Kind.WAIT_RECV_B, Kind.SEND_B),
}
"""What comes before a pass and what after it, where the tensor crosses ranks."""


def _passes_without_tensors(lists: _Lists) -> Iterator[Fault]:
    for rank, position, action in lists.actions():
        if not lists.moves or action.kind not in COMPUTE:
            continue
        wait, send = (action.as_kind(kind) for kind in _TENSORS_OF[action.kind])
        at = lists.at[rank]
        if message_of(wait, rank, lists.shape) is not None and at.get(wait, position) >= position:
            yield Fault(rank=rank, position=position, problem=f"{action} does not wait for its tensor ({wait})")
        if message_of(send, rank, lists.shape) is not None and send not in at:
            yield Fault(rank=rank, position=position, problem=f"what {action} puts out is never sent ({send})")


_MADE_BY: Mapping[Kind, Kind] = {Kind.SEND_F: Kind.F, Kind.SEND_B: Kind.B}


def _halves_of_transfers(lists: _Lists) -> Iterator[Fault]:
    for rank, position, action in lists.actions():
        at = lists.at[rank]
        if action.kind in _MADE_BY and lists.after(rank, action.as_kind(_MADE_BY[action.kind]), action):
            made_by = action.as_kind(_MADE_BY[action.kind])
            yield Fault(rank=rank, position=position, problem=f"{action} comes before {made_by}")
        if action.kind is Kind.WAIT_SEND_F and lists.after(rank, action, action.as_kind(Kind.B)):
            backward = action.as_kind(Kind.B)
            yield Fault(
                rank=rank, position=position, problem=f"{action} comes after {backward}, which frees the output"
            )
        if action.kind in WAIT_OF and action.as_kind(WAIT_OF[action.kind]) not in at:
            yield Fault(rank=rank, position=position, problem=f"nothing waits for the end of {action}")
        if action.kind in POST_OF and at.get(action.as_kind(POST_OF[action.kind]), position) >= position:
            post = action.as_kind(POST_OF[action.kind])
            yield Fault(rank=rank, position=position, problem=f"{action} waits for {post}, which has not started")


_CHECKS: tuple[_Check, ...] = (
    _twice,
    _missing_passes,
    _passes_out_of_order,
    _transfers_without_peer,
    _passes_without_tensors,
    _halves_of_transfers,
)


def _messages_out_of_order(lists: _Lists, queues: Queues) -> Iterator[Fault]:
    """The first place of each queue where the two ends do not start the same message."""
    ends: dict[tuple[int, ...], dict[int, list[tuple[int, Message]]]] = defaultdict(lambda: defaultdict(list))
    for rank, position, action in lists.actions():
        if action.kind in WAIT_OF:
            message = message_of(action, rank, lists.shape)
            assert message is not None
            ends[queue_of(message, queues)][rank].append((position, message))
    for key, by_rank in ends.items():
        sender, receiver = key[:2]
        pairs = zip(by_rank[sender], by_rank[receiver], strict=True)
        for number, ((there, sent), (position, received)) in enumerate(pairs, start=1):
            if sent != received:
                action, other = lists.grid[receiver][position], lists.grid[sender][there]
                problem = (
                    f"{action} is number {number} in its queue, where rank {sender} has {other} (order {queues.value})"
                )
                yield Fault(rank=receiver, position=position, problem=problem)
                break


def _deadlocks(lists: _Lists) -> Iterator[Fault]:
    for place in execute(lists.grid, lists.shape, Costs()).blocked:
        action = lists.grid[place.rank][place.position]
        problem = f"deadlock: {action} waits for {place.awaits}"
        yield Fault(rank=place.rank, position=place.position, problem=problem)
