"""`mix`: each layer may take another policy; how many layers take which is decided with the use of windows.

1. It starts from what `heu` finds; a dynamic program proposes more choices of policies, for several prices of hidden
   time (`overlap_recompute.planner.choice`).
2. The windows of each are packed (`overlap_recompute.planner.packing`).
3. The best is improved: another policy for one layer, or for two layers at a time where one gives memory and the other
   takes it, as long as that helps and effort is left.
"""

from collections.abc import Iterator
from itertools import islice

from overlap_recompute.planner.choice import feasible, stage_front
from overlap_recompute.planner.heu import search_structures
from overlap_recompute.planner.packing import Effort
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.search import Search, scaled
from overlap_recompute.planner.workspace import Choice, Workspace

EFFORT = Effort(width=2, sums=12, jobs=5)
PRICES = (0.03, 0.3, 2.0)
"""Of hidden time relative to exposed time."""
STATES = 64
CANDIDATES = 2
"""Choices that are packed for each price."""
MOVES = 8
"""Choices that are packed while the best one is improved."""


def solve_mix(workspace: Workspace) -> StageSolution | None:
    """The best solution found; None if nothing fits."""
    effort, moves = scaled(workspace, EFFORT, MOVES)
    search = Search(workspace, effort)
    start = search_structures(workspace)
    if start.best is None or start.is_done:
        return start.best
    search.best, search.choice = start.best, start.choice
    for choice in proposals(workspace, STATES, CANDIDATES):
        search.consider(choice)
        if search.is_done:
            break
    search.improve(moves)
    return search.best


def proposals(workspace: Workspace, states: int, most: int) -> Iterator[Choice]:
    """Choices of the dynamic program, the most promising of each price first."""
    for value in PRICES:
        for _, choice in islice(feasible(workspace, stage_front(workspace, states, value), value), most):
            yield choice
