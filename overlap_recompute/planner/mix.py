"""`mix`: each layer may take another policy; how many layers take which is decided with the use of windows.

1. It starts from what `heu` finds; a dynamic program proposes more choices of policies, for several prices of hidden
   time (`overlap_recompute.planner.choice`).
2. They are packed together with those of `heu`, and the best lanes varied for some generations: another order of jobs,
   another policy for one or two layers (`overlap_recompute.planner.evolve`).

Small stages are searched neighbour by neighbour instead (`overlap_recompute.planner.search`).
"""

from collections.abc import Iterator
from itertools import islice

from overlap_recompute.planner.choice import feasible, stage_front
from overlap_recompute.planner.heu import evolve_structures, search_structures
from overlap_recompute.planner.packing import Effort
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.search import Search, effort_of
from overlap_recompute.planner.workspace import Choice, Workspace, price

PRICES = (0.0, 0.03, 0.3, 2.0)
"""Of hidden time relative to exposed time."""
STATES = 256
CANDIDATES = 4
"""Choices that are packed for each price."""
BEAMS = 4
EFFORT = Effort(width=2, sums=12, jobs=5)
"""Choices that are packed by a beam search in the end."""
GENERATIONS, LANES, MENDED = 4, 64, 3


def solve_mix(workspace: Workspace) -> StageSolution | None:
    """The best solution found; None if nothing fits."""
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


def proposals(workspace: Workspace, states: int, most: int) -> Iterator[Choice]:
    """Choices of the dynamic program, the most promising of each price first."""
    for value in PRICES:
        for _, choice in islice(feasible(workspace, stage_front(workspace, states, value), value), most):
            yield choice
