"""`mix`: each layer may take another policy; how many layers take which is decided with the use of windows.

1. It starts from what `heu` finds; a dynamic program proposes more choices of policies, for several prices of hidden
   time (`overlap_recompute.planner.choice`).
2. They are packed together with those of `heu`, and the best lanes varied for some generations: another order of jobs,
   another policy for one or two layers (`overlap_recompute.planner.evolve`).

3. What is still exposed on a small stage goes through a local search over changes of one or two layers
   (`overlap_recompute.planner.polish`).
4. What is exposed then is annealed (`overlap_recompute.planner.anneal`), with half of the moves from here and with the
   other half as `heu` does it; all of them from here if half of them are too few.

Small stages are searched neighbour by neighbour first (`overlap_recompute.planner.search`).
"""

from collections.abc import Callable, Iterator
from itertools import islice

from overlap_recompute.planner.anneal import LEAST_MOVES, anneal
from overlap_recompute.planner.choice import feasible, lower_bound_us, stage_front
from overlap_recompute.planner.heu import (
    POLISHED_UNITS,
    SPREAD,
    SPREAD_PRICES,
    evolve_structures,
    finish_heu,
    moves_on,
    search_structures,
    smallest_fitting,
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
"""On a larger stage, where each packing takes longer, if it is not annealed."""
LEAST_US = 1e-6


def solve_mix(workspace: Workspace, exact: Callable[[], Workspace], moves: int) -> StageSolution | None:
    """The best solution found; None if nothing fits.

    Args:
        workspace: the policies that fast planners look at.
        exact: all policies that may be part of an optimum, for the last steps.
        moves: of annealing, in the end.
    """
    heu, found = _first_steps(workspace)
    if found is None or found.exposed_us <= LEAST_US:
        return found
    bound_us = lower_bound_us(workspace)
    moves = moves_on(workspace, moves)
    shared = moves // 2 if moves // 2 >= LEAST_MOVES else 0
    if heu is not None:
        found = min((found, finish_heu(workspace, exact, heu, shared)), key=lambda each: each.exposed_us)
    if units_of(workspace) <= POLISHED_UNITS:
        tables = [workspace.table(layer) for layer in range(len(found.dropped))]
        starts = candidates(workspace)
        others = [[table.dropped(policy) for table, policy in zip(tables, choice, strict=True)] for choice in starts]
        found = polish(exact(), found, others, PAINS, bound_us)
    elif moves - shared < LEAST_MOVES:
        found = polish(exact(), found, [], FEWER_PAINS, bound_us)
    return anneal(exact, found, moves - shared, bound_us)


def _first_steps(workspace: Workspace) -> tuple[StageSolution | None, StageSolution | None]:
    """What `heu` begins its last steps with, and something no worse."""
    effort = effort_of(workspace)
    if effort is None:
        return _evolved(workspace)
    search = Search(workspace, effort)
    start = search_structures(workspace)
    if start.best is None or start.is_done:
        return start.best, start.best
    search.best, search.choice = start.best, start.choice
    for choice in proposals(workspace, STATES, CANDIDATES):
        search.consider(choice)
        if search.is_done:
            break
    search.improve()
    return start.best, search.best


def _evolved(workspace: Workspace) -> tuple[StageSolution | None, StageSolution | None]:
    evolution = evolve_structures(workspace)
    heu = evolution.best
    if heu is None or evolution.is_done:
        return heu, heu
    found = [*dict.fromkeys(proposals(workspace, STATES, CANDIDATES))]
    evolution.step(LANES, MENDED, found)
    for _ in range(GENERATIONS - 1):
        if evolution.is_done:
            return heu, evolution.best
        evolution.step(LANES, MENDED)
    for choice in [*dict.fromkeys((evolution.choice, *found[:BEAMS]))]:
        evolution.offer(choice, price(workspace, choice, EFFORT))
    return heu, evolution.best


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
