"""`heu`: one structure is solved and applied to all layers of a kind.

All layers of a kind take policy p; since memory seldom comes out even, the first n of them (whose backward pass runs
last, with most windows before it) take another policy q. Every (p, q, n) is evaluated at once, with replays that can be
split; the windows of the most promising ones are packed, and a few single layers of the best are changed if that helps.
Several kinds in a stage are solved in turn.
"""

from collections.abc import Iterator

import numpy as np

from overlap_recompute.planner.choice import evaluate
from overlap_recompute.planner.packing import Effort
from overlap_recompute.planner.policies import Ints
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.search import Search, scaled, smallest
from overlap_recompute.planner.workspace import Choice, Workspace

EFFORT = Effort(width=1, sums=8, jobs=4)
PRICES = (0.03, 0.3)
"""Of hidden time relative to exposed time."""
CANDIDATES = 2
MOVES = 2
_SWEEPS = 2


def solve_heu(workspace: Workspace) -> StageSolution | None:
    """The best solution found; None if nothing fits."""
    return search_structures(workspace).best


def search_structures(workspace: Workspace) -> Search:
    """The search behind `solve_heu`, for planners that go on from there."""
    effort, moves = scaled(workspace, EFFORT, MOVES)
    search = Search(workspace, effort)
    start = next((choice for choice in smallest(workspace) if _fits(workspace, choice)), None)
    if start is None:
        return search
    for value in PRICES:
        for choice in structures(workspace, start, value):
            search.consider(choice)
        if search.is_done:
            return search
    if search.best is None:
        search.consider(start)
    search.improve(moves)
    return search


def structures(workspace: Workspace, start: Choice, price: float) -> Iterator[Choice]:
    current: list[Choice] = [start]
    for _ in range(1 if len(workspace.tables) == 1 else _SWEEPS):
        for kind in range(len(workspace.tables)):
            choices = _structures(workspace, current[0], kind)
            needed, exposed, total = evaluate(workspace, choices)
            order = np.lexsort((needed, exposed + price * total))
            fitting = order[needed[order] <= workspace.problem.budget_bytes]
            found = (tuple(int(policy) for policy in choices[index]) for index in fitting)
            current = _first(found, CANDIDATES) or current
    yield from current


def _first(choices: Iterator[Choice], most: int) -> list[Choice]:
    found: list[Choice] = []
    for choice in choices:
        if choice not in found:
            found.append(choice)
            if len(found) == most:
                break
    return found


def _structures(workspace: Workspace, base: Choice, kind: int) -> Ints:
    """(C, layers): all layers of a kind with policy p, the first n of them with q; other kinds as in `base`."""
    layers = [index for index, layer in enumerate(workspace.problem.layers) if layer.kind == kind]
    policies = len(workspace.tables[kind].masks)
    grid = np.indices((policies, policies, len(layers))).reshape(3, -1)
    choices = np.tile(np.array(base, dtype=np.int64), (grid.shape[1], 1))
    for position, index in enumerate(layers):
        choices[:, index] = np.where(position < grid[2], grid[1], grid[0])
    return choices


def _fits(workspace: Workspace, choice: Choice) -> bool:
    return sum(workspace.memory(choice)) <= workspace.problem.budget_bytes
