"""Who runs which forward and backward pass when: 1F1B and interleaved 1F1B, as lists of actions.

The order on each rank is that of Megatron-Core 0.16.1 (megatron/core/pipeline_parallel/schedules.py), so a run can
change between the two and get the same numbers. 1F1B: Narayanan et al., "PipeDream", SOSP 2019; interleaving:
Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", SC 2021.
"""

from collections.abc import Callable

from overlap_recompute.plan.actions import Action, Actions, Grid, Kind
from overlap_recompute.plan.errors import ConfigError


def one_f_one_b(pp: int, microbatches: int, *, forward_only: bool = False) -> Grid:
    """Non-interleaved 1F1B.

    Rank r runs pp - r - 1 forward passes (warm-up), then one forward and one backward pass in turn (steady), then the
    backward passes that are left (cool-down). At most pp - r microbatches are in flight.

    Args:
        pp: pipeline-parallel size, >= 1.
        microbatches: microbatches of the step, >= 1; fewer than `pp` are allowed.
        forward_only: leave out the backward passes (evaluation).

    Returns:
        For each rank its forward and backward passes in order; `with_communication` adds the rest.

    Raises:
        ConfigError: a size below 1.
    """
    _at_least(1, pp, "pipeline ranks")
    _at_least(1, microbatches, "microbatches")
    order = tuple((0, microbatch) for microbatch in range(microbatches))
    return _grid(pp, order, chunks=1, forward_only=forward_only, warm_up_of=lambda rank: pp - rank - 1)


def interleaved_one_f_one_b(
    pp: int, vpp: int, microbatches: int, *, group_size: int | None = None, forward_only: bool = False
) -> Grid:
    """Interleaved 1F1B: each rank holds `vpp` model chunks and goes through them in groups of microbatches.

    Args:
        pp: pipeline-parallel size, >= 2.
        vpp: model chunks of each rank (virtual pipeline size), >= 2.
        microbatches: microbatches of the step.
        group_size: microbatches that one chunk runs before the next chunk starts (Megatron-Core's
            `microbatch_group_size_per_vp_stage`); `pp` unless given. It is between `pp` and `microbatches`, and a last,
            smaller group has at least `pp` microbatches.
        forward_only: leave out the backward passes (evaluation).

    Returns:
        For each rank its forward and backward passes in order; `with_communication` adds the rest.

    Raises:
        ConfigError: sizes for which this schedule does not exist.
    """
    _at_least(2, pp, "pipeline ranks with interleaving")
    _at_least(2, vpp, "model chunks of each rank with interleaving")
    _at_least(1, microbatches, "microbatches")
    group = pp if group_size is None else group_size
    _check_groups(pp, microbatches, group)
    order = group_order(microbatches, vpp, group)
    return _grid(
        pp,
        order,
        chunks=vpp,
        forward_only=forward_only,
        warm_up_of=lambda rank: 2 * (pp - rank - 1) + (vpp - 1) * group,
    )


def pipeline_schedule(
    pp: int, vpp: int, microbatches: int, *, group_size: int | None = None, forward_only: bool = False
) -> Grid:
    """Interleaved 1F1B when `vpp` is above 1, else 1F1B: the choice that Megatron-Core makes.

    Raises:
        ConfigError: sizes for which the schedule does not exist, or a `group_size` without interleaving.
    """
    if vpp > 1:
        return interleaved_one_f_one_b(pp, vpp, microbatches, group_size=group_size, forward_only=forward_only)
    _at_least(1, vpp, "model chunks of each rank")
    if group_size is not None:
        raise ConfigError(
            f"a microbatch group size of {group_size} with one model chunk on each rank",
            "a group size with interleaving only",
            "leave it out, or choose at least 2 model chunks (virtual pipeline size)",
        )
    return one_f_one_b(pp, microbatches, forward_only=forward_only)


def group_order(microbatches: int, chunks: int, group_size: int) -> tuple[tuple[int, int], ...]:
    """The (chunk, microbatch) pairs in the order in which a rank runs their forward passes."""
    groups = [range(first, min(first + group_size, microbatches)) for first in range(0, microbatches, group_size)]
    return tuple((chunk, microbatch) for group in groups for chunk in range(chunks) for microbatch in group)


def _grid(
    pp: int,
    order: tuple[tuple[int, int], ...],
    *,
    chunks: int,
    forward_only: bool,
    warm_up_of: Callable[[int], int],
) -> Grid:
    forward = tuple(Action(kind=Kind.F, chunk=chunk, microbatch=microbatch) for chunk, microbatch in order)
    if forward_only:
        return (forward,) * pp
    backward = tuple(
        Action(kind=Kind.B, chunk=chunks - chunk - 1, microbatch=microbatch) for chunk, microbatch in order
    )
    return tuple(_one_rank(forward, backward, min(warm_up_of(rank), len(order))) for rank in range(pp))


def _one_rank(forward: Actions, backward: Actions, warm_up: int) -> Actions:
    """Warm-up, steady state, cool-down of one rank."""
    steady = len(forward) - warm_up
    pairs = tuple(action for pair in zip(forward[warm_up:], backward[:steady], strict=True) for action in pair)
    return (*forward[:warm_up], *pairs, *backward[steady:])


def _at_least(least: int, value: int, what: str) -> None:
    if value < least:
        raise ConfigError(f"{value} {what}", f"at least {least}", "choose a larger number")


def _check_groups(pp: int, microbatches: int, group: int) -> None:
    """The rule of Megatron-Core: no group may be smaller than the pipeline is long."""
    if microbatches < pp or not pp <= group <= microbatches:
        raise ConfigError(
            f"groups of {group} among {microbatches} microbatches in an interleaved pipeline of {pp} ranks",
            f"a group size from the {pp} ranks to the number of microbatches",
            f"choose at least {pp} microbatches and a group size in that range",
        )
    rest = microbatches % group
    if 0 < rest < pp:
        below = microbatches - rest
        raise ConfigError(
            f"{microbatches} microbatches in an interleaved pipeline of {pp} ranks, where the last group of {group} "
            f"gets only {rest}",
            f"whole groups of {group}, or a last group of at least {pp}",
            f"choose {below} or {below + pp} microbatches, or another group size",
        )
