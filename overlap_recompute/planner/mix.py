"""`mix`: each layer may take another policy; how many layers take which is decided with the use of windows.

1. It starts from what `heu` finds; a dynamic program proposes more choices of policies, for several prices of hidden
   time (`overlap_recompute.planner.choice`).
2. They are packed together with those of `heu`, and the best lanes varied for some generations: another order of jobs,
   another policy for one or two layers (`overlap_recompute.planner.evolve`).

3. What is still exposed goes through a local search over changes of one or two layers
   (`overlap_recompute.planner.polish`).

Small stages are searched neighbour by neighbour first (`overlap_recompute.planner.search`).
"""

from collections.abc import Callable, Iterator
from itertools import islice

from overlap_recompute.planner.choice import feasible, lower_bound_us, stage_front
from overlap_recompute.planner.heu import (
    POLISHED_UNITS,
    SPREAD,
    SPREAD_PRICES,
    evolve_structures,
    search_structures,
    smallest_fitting,
    solve_heu,
    structures,
)
from overlap_recompute.planner.packing import Effort
from overlap_recompute.planner.polish import Pains, polish
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.search import Search, effort_of, units_of
from overlap_recompute.planner.workspace import Choice, Workspace, price

PRICES = (0.0, 0.03, 0.3, 2.0)
"""Of hidden time relative to exposed time."""
STATES = 256
CANDIDATES = 4
"""Choices that are packed for each price."""
BEAMS = 1
EFFORT = Effort(width=2, sums=12, jobs=5)
"""Choices that are packed by a beam search in the end."""
GENERATIONS, LANES, MENDED = 2, 64, 3
PAINS = Pains(choices=24, times=4, mended=40, pairs=300, generations=6, patience=3, share=0.01)
FEWER_PAINS = Pains(choices=12, times=2, mended=12, pairs=60, generations=2, patience=2, share=0.01)
"""On a larger stage, where each packing takes longer."""
LEAST_US = 1e-6


def solve_mix(workspace: Workspace, exact: Callable[[], Workspace]) -> StageSolution | None:
    """The best solution found; None if nothing fits.

    Args:
        workspace: the policies that fast planners look at.
        exact: all policies that may be part of an optimum, for the last steps.
    """
    found = _first_steps(workspace)
    if found is None or found.exposed_us <= LEAST_US:
        return found
    if units_of(workspace) > POLISHED_UNITS:
        return polish(exact(), found, [], FEWER_PAINS, lower_bound_us(workspace))
    heu = solve_heu(workspace, exact)
    found = min((found, found if heu is None else heu), key=lambda each: each.exposed_us)
    tables = [workspace.table(layer) for layer in range(len(found.dropped))]
    starts = candidates(workspace)
    others = [[table.dropped(policy) for table, policy in zip(tables, choice, strict=True)] for choice in starts]
    return polish(exact(), found, others, PAINS, lower_bound_us(workspace))


def _first_steps(workspace: Workspace) -> StageSolution | None:
    effort = effort_of(workspace)
    if effort is None:
        return _evolved(workspace)
    search = Search(workspace, effort)
    start = search_structures(workspace)
    if start.best is None or start.is_done:
        return start.best
    search.best, search.choice = start.best, start.choice
    for choice in proposals(workspace, STATES, CANDIDATES):
        search.consider(choice)
        if search.is_done:
            break
    search.improve()
    return search.best


def _evolved(workspace: Workspace) -> StageSolution | None:
    evolution = evolve_structures(workspace)
    if evolution.best is None or evolution.is_done:
        return evolution.best
    found = [*dict.fromkeys(proposals(workspace, STATES, CANDIDATES))]
    evolution.step(LANES, MENDED, found)
    for _ in range(GENERATIONS - 1):
        if evolution.is_done:
            return evolution.best
        evolution.step(LANES, MENDED)
    for choice in [*dict.fromkeys((evolution.choice, *found[:BEAMS]))]:
        evolution.offer(choice, price(workspace, choice, EFFORT))
    return evolution.best


def candidates(workspace: Workspace) -> list[Choice]:
    """What both planners start from, without repetition; empty if nothing fits."""
    start = smallest_fitting(workspace)
    if start is None:
        return []
    found = structures(workspace, start, SPREAD_PRICES, SPREAD)
    return [*dict.fromkeys((*found, *proposals(workspace, STATES, CANDIDATES), start))]


def proposals(workspace: Workspace, states: int, most: int) -> Iterator[Choice]:
    """Choices of the dynamic program, the most promising of each price first."""
    for value in PRICES:
        for _, choice in islice(feasible(workspace, stage_front(workspace, states, value), value), most):
            yield choice
