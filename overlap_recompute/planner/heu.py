"""`heu`: one structure is solved and applied to all layers of a kind.

All layers of a kind take policy p; since memory seldom comes out even, the first n of them (whose backward pass runs
last, with most windows before it) take another policy q. Every (p, q, n) is evaluated at once, with replays that can be
split. The most promising ones are packed together, and the best varied once (`overlap_recompute.planner.evolve`). What
is still exposed is annealed (`overlap_recompute.planner.anneal`): there layers may come to differ in single units.
Several kinds in a stage are solved in turn. Small stages are searched with more care
(`overlap_recompute.planner.search`).
"""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from overlap_recompute.planner.anneal import LEAST_MOVES, anneal
from overlap_recompute.planner.choice import evaluate, lower_bound_us
from overlap_recompute.planner.evolve import Evolution
from overlap_recompute.planner.packing import Effort
from overlap_recompute.planner.policies import Ints
from overlap_recompute.planner.polish import Pains, polish
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.search import Search, effort_of, smallest, units_of
from overlap_recompute.planner.workspace import Choice, Workspace, price

PRICES = (0.03, 0.3)
"""Of hidden time relative to exposed time."""
CANDIDATES = 2
SPREAD_PRICES = (0.0, 0.03, 0.3, 1.0)
SPREAD = 5
"""Structures for each of these prices that are packed on a larger stage."""
QUICK = Effort(width=1, sums=6, jobs=4)
"""First of all; where windows are long it finds that nothing has to be exposed."""
LANES, MENDED = 40, 3
POLISHED_UNITS = 30
"""Units of a stage up to which `polish` comes last."""
PAINS = Pains(choices=24, times=2, mended=24, pairs=200, generations=5, patience=2, share=0.05)
SMALL_MOVES = 8000
_SWEEPS = 2
_PLACES = 8
"""Most values of n."""


def solve_heu(workspace: Workspace, exact: Callable[[], Workspace], moves: int) -> StageSolution | None:
    """The best solution found; None if nothing fits.

    Args:
        workspace: the policies that fast planners look at.
        exact: all policies that may be part of an optimum, for the last steps.
        moves: of annealing, in the end.
    """
    found = search_structures(workspace) if effort_of(workspace) else evolve_structures(workspace)
    if found.best is None or found.is_done:
        return found.best
    return finish_heu(workspace, exact, found.best, moves)


def finish_heu(workspace: Workspace, exact: Callable[[], Workspace], found: StageSolution, moves: int) -> StageSolution:
    """The last steps of `solve_heu`, from what structures came to."""
    moves = moves_on(workspace, moves)
    is_small = units_of(workspace) <= POLISHED_UNITS
    if not is_small and moves < LEAST_MOVES:
        return found
    bound_us = lower_bound_us(workspace)
    if is_small:
        found = polish(exact(), found, [], PAINS, bound_us)
    return anneal(exact, found, moves, bound_us)


def moves_on(workspace: Workspace, moves: int) -> int:
    """Of annealing: few on the smallest stages, where the search before leaves little to find."""
    return min(moves, SMALL_MOVES) if effort_of(workspace) else moves


def evolve_structures(workspace: Workspace) -> Evolution:
    """Structures and one generation that varies the best of them, for larger stages."""
    evolution = Evolution(workspace)
    start = smallest_fitting(workspace)
    if start is not None:
        found = structures(workspace, start, SPREAD_PRICES, SPREAD)
        evolution.offer(found[0], price(workspace, found[0], QUICK, once=True))
        if evolution.is_done:
            return evolution
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
            for value in prices:
                order = np.lexsort((needed, exposed + value * total))
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
