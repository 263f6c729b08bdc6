"""`heu`: one structure is solved and applied to all layers of a kind.

All layers of a kind take policy p; since memory seldom comes out even, the first n of them (whose backward pass runs
last, with most windows before it) take another policy q. Every (p, q, n) is evaluated at once, with replays that can be
split. The most promising ones are packed together, and the best varied once (`overlap_recompute.planner.evolve`).
Several kinds in a stage are solved in turn. Small stages are searched with more care
(`overlap_recompute.planner.search`).
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from overlap_recompute.planner.choice import evaluate
from overlap_recompute.planner.evolve import Evolution
from overlap_recompute.planner.policies import Ints
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.search import Search, effort_of, smallest
from overlap_recompute.planner.workspace import Choice, Workspace

PRICES = (0.03, 0.3)
"""Of hidden time relative to exposed time."""
CANDIDATES = 2
SPREAD_PRICES = (0.0, 0.03, 0.3, 1.0)
SPREAD = 5
"""Structures for each of these prices that are packed on a larger stage."""
LANES, MENDED = 40, 3
_SWEEPS = 2
_PLACES = 8
"""Most values of n."""


def solve_heu(workspace: Workspace) -> StageSolution | None:
    """The best solution found; None if nothing fits."""
    found = search_structures(workspace) if effort_of(workspace) else evolve_structures(workspace)
    return found.best


def evolve_structures(workspace: Workspace) -> Evolution:
    """Structures and one generation that varies the best of them, for larger stages."""
    evolution = Evolution(workspace)
    start = smallest_fitting(workspace)
    if start is not None:
        found = structures(workspace, start, SPREAD_PRICES, SPREAD)
        evolution.start([*dict.fromkeys((*found, start))], LANES, MENDED)
        if not evolution.is_done:
            evolution.step(LANES, MENDED)
    return evolution


def search_structures(workspace: Workspace) -> Search:
    """The search for small stages, for planners that go on from there."""
    effort = effort_of(workspace)
    assert effort is not None
    search = Search(workspace, effort)
    start = smallest_fitting(workspace)
    if start is None:
        return search
    for choice in structures(workspace, start, PRICES, CANDIDATES):
        search.consider(choice)
    if search.is_done:
        return search
    if search.best is None:
        search.consider(start)
    search.improve()
    return search


def smallest_fitting(workspace: Workspace) -> Choice | None:
    """A choice that keeps as little as possible and fits."""
    return next((choice for choice in smallest(workspace) if _fits(workspace, choice)), None)


def structures(workspace: Workspace, start: Choice, prices: tuple[float, ...], most: int) -> list[Choice]:
    """The best structures for each of several prices of hidden time, without repetition."""
    current: list[Choice] = [start]
    kinds = len(workspace.tables)
    for _ in range(1 if kinds == 1 else _SWEEPS):
        for kind in range(kinds):
            choices = _structures(workspace, current[0], kind)
            needed, exposed, total = evaluate(workspace, choices)
            fits = needed <= workspace.problem.budget_bytes
            choices, needed, exposed, total = choices[fits], needed[fits], exposed[fits], total[fits]
            found: list[Choice] = []
            for price in prices:
                order = np.lexsort((needed, exposed + price * total))
                found += _first((tuple(choices[index].tolist()) for index in order), most)
            current = [*dict.fromkeys(found)] or current
    return current


def _first(choices: Iterator[Choice], most: int) -> list[Choice]:
    return [*islice(dict.fromkeys(islice(choices, 8 * most)), most)]


def _structures(workspace: Workspace, base: Choice, kind: int) -> Ints:
    """(C, layers): all layers of a kind with policy p, the first n of them with q; other kinds as in `base`."""
    layers = [index for index, layer in enumerate(workspace.problem.layers) if layer.kind == kind]
    policies = len(workspace.tables[kind].masks)
    places = np.unique(np.linspace(0, len(layers) - 1, min(_PLACES, len(layers))).round().astype(np.int64))
    grid = np.indices((policies, policies, len(places))).reshape(3, -1)
    same = (grid[0] == grid[1]) | (grid[2] == 0)
    grid = grid[:, ~same | ((grid[0] == grid[1]) & (grid[2] == 0))]
    choices = np.tile(np.array(base, dtype=np.int64), (grid.shape[1], 1))
    for position, index in enumerate(layers):
        choices[:, index] = np.where(position < places[grid[2]], grid[1], grid[0])
    return choices


def _fits(workspace: Workspace, choice: Choice) -> bool:
    return sum(workspace.memory(choice)) <= workspace.problem.budget_bytes
