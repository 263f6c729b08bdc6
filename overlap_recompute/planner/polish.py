"""Local search on the true price: neighbours of the best choices are estimated together, and the promising ones packed.

A generation looks at every change of one layer's policy in the best choices, and at many random changes of two layers
(which is how a unit is kept in one layer and dropped in another). All of them are estimated with replays that can be
split (`overlap_recompute.planner.choice`); the best estimates are packed in several orders of jobs, beside choices of
one unit turned over, whatever their estimate. The best lane of each choice is mended: a choice is worth little before
that. All policies that may be part of
an optimum are in the tables, also those that estimates alone would leave out.

It ends when nothing is exposed, when what is exposed comes near a bound, or after some generations without success.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overlap_recompute.planner.choice import evaluate
from overlap_recompute.planner.evolve import Evolution
from overlap_recompute.planner.policies import Floats, Ints
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.workspace import Choice, Workspace

PRICES = (0.0, 0.03, 0.1, 0.3)
"""Of hidden time relative to exposed time, in turn."""
MENDED = 3
_PARENTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Pains:
    """How long to search."""

    choices: int
    """Neighbours that are packed in a generation."""
    times: int
    """Orders of jobs for each."""
    mended: int
    """Choices that are mended."""
    pairs: int
    """Random changes of two layers, for each parent."""
    generations: int
    patience: int
    """Generations without success."""
    share: float
    """So near the bound is near enough, relative to what is exposed."""


def polish(
    workspace: Workspace,
    start: StageSolution,
    others: Sequence[Sequence[frozenset[str]]],
    pains: Pains,
    bound_us: float,
) -> StageSolution:
    """The best solution found, no worse than `start`.

    Args:
        workspace: the problem with all policies that may be part of an optimum.
        start: where to begin.
        pains: how long to search.
        bound_us: no solution exposes less, or hardly any.
    """
    tables = [workspace.table(layer) for layer in range(len(start.dropped))]
    starts = [
        tuple(table.nearest(table.mask_of(names)) for table, names in zip(tables, dropped, strict=True))
        for dropped in (start.dropped, *others)
    ]
    fitting = [
        choice for choice in dict.fromkeys(starts) if sum(workspace.memory(choice)) <= workspace.problem.budget_bytes
    ]
    evolution = Evolution(workspace)
    evolution.start(fitting, len(fitting) * pains.times, MENDED)
    evolution.explore([], fitting, pains.times, pains.mended)
    evolution.offer(evolution.choice, start)
    random, seen, idle = np.random.default_rng(2), dict[Choice, int](), 0
    for generation in range(pains.generations):
        best = evolution.best
        assert best is not None
        if idle >= pains.patience or best.exposed_us <= max(1e-6, bound_us * (1 + pains.share)):
            break
        value, often = PRICES[generation % len(PRICES)], 1 + generation // 2
        parents = evolution.parents(_PARENTS)
        found = _flips(workspace, evolution.choice, seen)[: pains.choices // 2]
        found += _promising(workspace, parents, pains, value, seen, often, pains.choices - len(found), random)
        evolution.explore(found, parents, pains.times, pains.mended)
        idle = 0 if evolution.best is not best else idle + 1
    assert evolution.best is not None
    return evolution.best


def _promising(
    workspace: Workspace,
    parents: list[Choice],
    pains: Pains,
    value: float,
    seen: dict[Choice, int],
    often: int,
    most: int,
    random: np.random.Generator,
) -> list[Choice]:
    """Choices, the best estimates first, those that have been packed so often left out."""
    rows = [_changes(workspace, parent, pains.pairs, random) for parent in parents]
    choices = np.concatenate(rows)
    needed, exposed, total = evaluate(workspace, choices)
    # Every other one by estimate and chance: estimates know little of what memory for prefetching forbids.
    score = _score(exposed, total, value)
    noisy = score + random.exponential(max(float(np.median(score)), 1.0), len(score))
    order = np.stack([np.argsort(score, kind="stable"), np.argsort(noisy, kind="stable")], axis=1).ravel()
    found: list[Choice] = []
    if most <= 0:
        return found
    for index in order[needed[order] <= workspace.problem.budget_bytes]:
        choice = tuple(choices[index].tolist())
        if seen.get(choice, 0) < often and choice not in found:
            seen[choice] = seen.get(choice, 0) + 1
            found.append(choice)
            if len(found) >= most:
                break
    return found


def _flips(workspace: Workspace, parent: Choice, seen: dict[Choice, int]) -> list[Choice]:
    """All choices that differ in one unit and fit into memory, whatever their estimate."""
    found = []
    for layer, policy in enumerate(parent):
        masks = workspace.table(layer).masks
        for row in (row for row, bits in enumerate((masks ^ masks[policy]).tolist()) if bits.bit_count() == 1):
            choice = (*parent[:layer], row, *parent[layer + 1 :])
            if choice not in seen and sum(workspace.memory(choice)) <= workspace.problem.budget_bytes:
                seen[choice] = 1
                found.append(choice)
    return found


def _score(exposed: Floats, total: Floats, value: float) -> Floats:
    return exposed + value * total


def _changes(workspace: Workspace, parent: Choice, pairs: int, random: np.random.Generator) -> Ints:
    """(C, layers): all changes of one layer, and some of two."""
    sizes = np.array([len(workspace.table(layer).masks) for layer in range(len(parent))])
    base = np.array(parent, dtype=np.int64)
    layers = np.repeat(np.arange(len(parent)), sizes)
    single = np.tile(base, (len(layers), 1))
    single[np.arange(len(layers)), layers] = np.concatenate([np.arange(size) for size in sizes])
    if len(parent) == 1 or pairs == 0:
        return single
    double = np.tile(base, (pairs, 1))
    for _ in range(2):
        layer = random.integers(0, len(parent), pairs)
        double[np.arange(pairs), layer] = (random.random(pairs) * sizes[layer]).astype(np.int64)
    return np.concatenate([single, double])
