"""The list of actions of this rank, made once for each number of microbatches, with what a handler would look up."""

from dataclasses import dataclass

from overlap_recompute.plan.actions import POST_OF, WAIT_OF, WAITS_FOR_RECEIVE, Action, Actions, Kind
from overlap_recompute.schedules import (
    Message,
    Phase,
    PipelineShape,
    RecomputeAhead,
    message_of,
    phases_of,
    pipeline_schedule,
    validate,
    with_communication,
    with_recompute,
)

Key = tuple[int, int]
"""(chunk, microbatch)."""

SEND_AFTER = {Kind.F: Kind.SEND_F, Kind.B: Kind.SEND_B}
MOVES = frozenset({*WAIT_OF, *POST_OF})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The pipeline as one rank sees it."""

    stages: int
    """Pipeline-parallel size."""
    stage: int
    """Pipeline rank."""
    chunks: int
    """Model chunks of each rank; 1 without interleaving."""
    group_size: int | None = None
    """Microbatches that a chunk runs before the next one does (`microbatch_group_size_per_vp_stage`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """An action, and what follows from its place in the lists."""

    action: Action
    """What to do."""
    key: Key
    """(chunk, microbatch)."""
    phase: Phase
    """Part of the step."""
    number: int
    """Of a pass: how many of its kind came before it on this rank. 0 for other actions."""
    message: Message | None
    """What a send, a receive or a wait moves."""
    partner: Action | None
    """Of a send or receive its wait; of a wait its send or receive; of a pass the send of what it puts out, if any."""
    is_filled: bool
    """Of a receive and its wait: recompute is to run in the wait (there is an R before it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What this rank does in a step."""

    instructions: tuple[Instruction, ...]
    """In order."""
    microbatches: int
    """Of the step."""
    forward: Actions
    """The forward passes among them."""
    backward: Actions
    """The backward passes among them; none in an evaluation."""

    @property
    def trains(self) -> bool:
        """Whether there are backward passes."""
        return bool(self.backward)


def build_program(
    layout: Layout, microbatches: int, *, forward_only: bool = False, ahead: RecomputeAhead | None = None
) -> Program:
    """The validated list of one rank.

    Args:
        layout: the pipeline.
        microbatches: of the step.
        forward_only: an evaluation.
        ahead: which waits of a training step get recompute; None: none.

    Raises:
        ConfigError: there is no schedule for these sizes.
    """
    grid = pipeline_schedule(
        layout.stages, layout.chunks, microbatches, group_size=layout.group_size, forward_only=forward_only
    )
    if layout.stages > 1:
        grid = with_communication(grid)
    if ahead is not None and not forward_only:
        grid = with_recompute(grid, ahead)
    shape = PipelineShape(ranks=layout.stages, chunks=layout.chunks, microbatches=microbatches)
    return compile_program(validate(grid, shape=shape)[layout.stage], shape, layout.stage)


def compile_program(row: Actions, shape: PipelineShape, stage: int) -> Program:
    """One rank's list as instructions.

    Args:
        row: a validated list.
        shape: size of the schedule.
        stage: pipeline rank whose list it is.
    """
    filled = _filled_waits(row)
    counts = dict.fromkeys(SEND_AFTER, 0)
    instructions = []
    for action, phase in zip(row, phases_of(row), strict=True):
        number = counts.get(action.kind, 0)
        if action.kind in counts:
            counts[action.kind] += 1
        wait = action.as_kind(WAIT_OF[action.kind]) if action.kind in WAIT_OF else action
        instructions.append(
            Instruction(
                action=action,
                key=(action.chunk, action.microbatch),
                phase=phase,
                number=number,
                message=message_of(action, stage, shape) if action.kind in MOVES else None,
                partner=_partner(action, stage, shape),
                is_filled=wait in filled,
            )
        )
    return Program(
        instructions=tuple(instructions),
        microbatches=shape.microbatches,
        forward=tuple(action for action in row if action.kind is Kind.F),
        backward=tuple(action for action in row if action.kind is Kind.B),
    )


def _filled_waits(row: Actions) -> frozenset[Action]:
    """The waits for receives that have an R since the pass before them."""
    filled, ahead = [], False
    for action in row:
        if action.kind in WAITS_FOR_RECEIVE and ahead:
            filled.append(action)
        ahead = action.kind is Kind.R or (ahead and action.kind in (Kind.WAIT_SEND_F, Kind.WAIT_SEND_B))
    return frozenset(filled)


def _partner(action: Action, stage: int, shape: PipelineShape) -> Action | None:
    if action.kind in SEND_AFTER:
        send = action.as_kind(SEND_AFTER[action.kind])
        return send if message_of(send, stage, shape) is not None else None
    partners = {**WAIT_OF, **POST_OF}
    return action.as_kind(partners[action.kind]) if action.kind in partners else None
