"""Puts recompute ahead of need (R) into the waits of a schedule."""

import enum
from dataclasses import dataclass

from overlap_recompute.plan.actions import WAITS_FOR_RECEIVE, Action, Actions, Grid, Kind, ScheduleError
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.schedules.communication import has_communication


class Phase(enum.Enum):
    """Part of a step in which a rank waits; decided by where its own passes are.

    Steady state and cool-down are Megatron's. Warm-up also has the wait for the first gradient, which Megatron's code
    runs in its steady loop: that wait is the pipeline filling up.
    """

    WARM_UP = "warmup"
    """Until its first backward pass starts."""
    STEADY = "steady"
    """While forward and backward passes take turns: until the backward pass after its last forward pass starts."""
    COOL_DOWN = "cooldown"
    """From there on: the pipeline runs empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputeAhead:
    """Which waits are filled, and with how much."""

    phases: frozenset[Phase] = frozenset(Phase)
    """Phases whose waits are filled."""
    microbatches: int = 1
    """How many of the backward passes that come next are prepared in one wait, the next one first. More can fill a
    longer wait, and keeps more recomputed tensors at a time."""

    def __post_init__(self) -> None:
        if self.microbatches < 1:
            raise ConfigError(
                f"{self.microbatches} microbatches to recompute ahead", "at least 1", "leave out the recompute instead"
            )


def phases_of(actions: Actions) -> tuple[Phase, ...]:
    """The phase of each action of a rank's list; a list without backward passes is all warm-up."""
    last_forward = max((index for index, action in enumerate(actions) if action.kind is Kind.F), default=-1)
    backward = [index for index, action in enumerate(actions) if action.kind is Kind.B]
    first_end = backward[0] + 1 if backward else len(actions)
    steady_end = next((index + 1 for index in backward if index > last_forward), first_end)
    lengths = {
        Phase.WARM_UP: first_end,
        Phase.STEADY: steady_end - first_end,
        Phase.COOL_DOWN: len(actions) - steady_end,
    }
    return tuple(phase for phase, length in lengths.items() for _ in range(length))


def with_recompute(grid: Grid, choice: RecomputeAhead | None = None) -> Grid:
    """The same lists with R before each wait for a receive of the chosen phases.

    Such a wait gets an R for the (chunk, microbatch) whose backward pass comes next on the rank, if its forward pass
    has run: nothing else can be of use sooner. Where there is none - the last stage, whose backward follows its forward
    at once - the wait stays empty. Waits may repeat an R: it goes on where the last one stopped.

    Args:
        grid: lists with their communication.
        choice: every phase, one microbatch ahead, unless given.

    Raises:
        ScheduleError: the lists have no communication, or have recompute already.
    """
    if any(action.kind is Kind.R for row in grid for action in row):
        raise ScheduleError("R in lists that are to get their recompute", "none", "call without_recompute() first")
    if len(grid) > 1 and not has_communication(grid):
        raise ScheduleError("lists without waits to recompute in", "communication", "call with_communication() first")
    return tuple(_one_rank(row, choice or RecomputeAhead()) for row in grid)


def without_recompute(grid: Grid) -> Grid:
    """The same lists without R."""
    return tuple(tuple(action for action in row if action.kind is not Kind.R) for row in grid)


def _one_rank(row: Actions, choice: RecomputeAhead) -> Actions:
    backward = [action for action in row if action.kind is Kind.B]
    result: list[Action] = []
    forwarded: set[tuple[int, int]] = set()
    done = 0
    for action, phase in zip(row, phases_of(row), strict=True):
        if action.kind in WAITS_FOR_RECEIVE and phase in choice.phases:
            coming = backward[done : done + choice.microbatches]
            result += [each.as_kind(Kind.R) for each in coming if (each.chunk, each.microbatch) in forwarded]
        result.append(action)
        done += action.kind is Kind.B
        if action.kind is Kind.F:
            forwarded.add((action.chunk, action.microbatch))
    return tuple(result)
