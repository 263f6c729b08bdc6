"""Keeps what need not be dropped.

A search looks at exposed time alone: where windows hide every replay it may drop far more than memory asks for. But a
replay takes power, and slows the collective beside it more or less, which no profile tells. So units are kept again
where memory is left for them, layer by layer, those first that take longest for their bytes. A replay less in the same
windows exposes no more.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from overlap_recompute.plan.profile import LayerKind
from overlap_recompute.plan.storages import kept_bytes_of
from overlap_recompute.planner.infeasible import SEARCHING
from overlap_recompute.planner.pipeline import Pipeline, Solved, settled
from overlap_recompute.planner.policies import PolicyTable, price_policies, priced_working
from overlap_recompute.planner.problem import StageProblem, StageSolution
from overlap_recompute.planner.workspace import Choice, Workspace, assemble

_LEAST_US = 1e-6


def spared(pipeline: Pipeline, solved: list[Solved]) -> list[Solved]:
    """The stages with fewer replays; the very list where there is no room for that."""
    if pipeline.planner not in SEARCHING:
        return solved
    result = [(problem, _with_fewer(problem, found)) for problem, found in solved]
    if all(new is old for (_, new), (_, old) in zip(result, solved, strict=True)):
        return solved
    work = [pipeline.work_us(stage) for stage in range(len(solved))]
    return settled(result, work, pipeline.transfer_us)


def _with_fewer(problem: StageProblem, found: StageSolution) -> StageSolution:
    """A stage's solution with fewer replays, or itself."""
    if not any(found.dropped) or found.total_bytes >= problem.budget_bytes:
        return found
    kinds = [problem.kinds[layer.kind] for layer in problem.layers]
    sets = {(kind, dropped): _wider(kind, dropped) for kind, dropped in zip(kinds, found.dropped, strict=True)}
    tables = [
        _table(kind, {each for (other, _), row in sets.items() if other == kind for each in row})
        for kind in problem.kinds
    ]
    workspace = Workspace(problem, tables)
    choice = tuple(workspace.table(layer).find(names) for layer, names in enumerate(found.dropped))
    start = best = assemble(workspace, choice, found.fills)
    for layer, kind in enumerate(kinds):
        for dropped in sets[kind, found.dropped[layer]]:
            other = (*choice[:layer], workspace.table(layer).find(dropped), *choice[layer + 1 :])
            if sum(workspace.memory(other)) > problem.budget_bytes:
                continue
            new = _without(workspace, other, best)
            if new.total_bytes <= problem.budget_bytes and new.exposed_us <= best.exposed_us + _LEAST_US:
                choice, best = other, new
                break
    if best.dropped == found.dropped:
        return found
    # What the settled solution exposes may be less than what `assemble` finds in its windows.
    exposed_us = max(0.0, found.exposed_us - (start.exposed_us - best.exposed_us))
    total_us = best.hidden_us + best.exposed_us
    return replace(
        best, exposed_us=exposed_us, hidden_us=total_us - exposed_us, bound_us=min(found.bound_us, exposed_us)
    )


def _table(kind: LayerKind, sets: Collection[frozenset[str]]) -> PolicyTable:
    """The policies that drop these units."""
    table = price_policies(kind, with_working=False)
    rows = np.array(sorted(map(table.find, sets)), dtype=np.int64)
    return priced_working(kind, table.rows(rows))


def _wider(kind: LayerKind, dropped: frozenset[str]) -> tuple[frozenset[str], ...]:
    """Sets that drop less and less in turn, the one that drops nothing first, `dropped` itself last."""

    def worth(name: str) -> tuple[float, str]:
        more_bytes = kept_bytes_of(kind.storages, dropped - {name}) - kept_bytes_of(kind.storages, dropped)
        return times_us[name] / max(1, more_bytes), name

    times_us = {unit.name: unit.forward_us for unit in kind.units}
    order = sorted(dropped, key=worth, reverse=True)
    return tuple(frozenset(order[count:]) for count in range(len(order), -1, -1))


def _without(workspace: Workspace, choice: Choice, found: StageSolution) -> StageSolution:
    """The same windows, without replays that the choice does not need."""

    def is_needed(layer: int, unit: int) -> bool:
        return bool(int(workspace.table(layer).work[choice[layer]]) >> unit & 1)

    return assemble(workspace, choice, [fill for fill in found.fills if is_needed(fill.layer, fill.unit)])
