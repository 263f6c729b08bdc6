"""Variables of the linear program of a stage (`overlap_recompute.planner.milp` says what they mean)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from overlap_recompute.planner.policies import Floats, PolicyTable
from overlap_recompute.planner.workspace import Workspace, effective_deadlines

Row = tuple[dict[int, float], float]
"""Coefficients by column, and the most that their sum may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where each variable is."""

    policy: dict[tuple[int, int], int]
    """Of layers whose prices are no sums over dropped units."""
    dropped: dict[tuple[int, int], int]
    placed: dict[tuple[int, int, int], int]
    overrun: dict[int, int]
    extra: dict[tuple[int, int, int], int]
    working: int

    @property
    def count(self) -> int:
        """Of all variables."""
        return self.working + 1


def columns_of(workspace: Workspace) -> Columns:
    """Variables of a problem; windows in which a unit may not be have none."""
    problem = workspace.problem
    number = itertools.count()
    policy, dropped, placed, extra = {}, {}, {}, {}
    for i, layer in enumerate(problem.layers):
        table = workspace.table(i)
        if not is_sum(table, [deadline - layer.own_window for deadline in layer.deadlines]):
            policy.update({(i, p): next(number) for p in range(len(table.masks))})
        for u in units_of(workspace, i):
            dropped[i, u] = next(number)
            for w in range(layer.first_window, layer.deadlines[u]):
                placed[i, u, w] = next(number)
                if _varies(workspace, i, u):
                    extra[i, u, w] = next(number)
    overrun = {w: next(number) for w in range(len(problem.windows))}
    return Columns(
        policy=policy,
        dropped=dropped,
        placed=placed,
        overrun=overrun,
        extra=extra,
        working=next(number),
    )


def units_of(workspace: Workspace, layer: int) -> list[int]:
    """Units that some policy of the layer drops."""
    table = workspace.table(layer)
    union = int(np.bitwise_or.reduce(table.masks))
    return [unit for unit in range(len(table.names)) if union >> unit & 1]


def sizes_of(workspace: Workspace, layer: int, unit: int) -> set[int]:
    """What a replay of the unit brings back, under one policy or another."""
    table = workspace.table(layer)
    return {int(size) for size in table.unit_bytes[table.work >> unit & 1 == 1, unit]}


def _varies(workspace: Workspace, layer: int, unit: int) -> bool:
    return len(sizes_of(workspace, layer, unit)) > 1


def is_sum(table: PolicyTable, deadlines: Sequence[int]) -> bool:
    """Whether x says all about a layer: any units may be dropped together, each at a price of its own."""
    units = int(np.bitwise_or.reduce(table.masks))
    return (
        len(table.masks) == 1 << units.bit_count()
        and np.array_equal(table.masks, table.work)
        and by_unit(table, table.kept_bytes) is not None
        and by_unit(table, table.working_bytes) is not None
        and effective_deadlines(deadlines, table.reads, units) == list(deadlines)
    )


def by_unit(table: PolicyTable, values: npt.NDArray[np.int64]) -> list[int] | None:
    """Values of all policies as one constant and one value for each dropped unit, if they are such a sum."""
    drops = table.masks[:, None] >> np.arange(len(table.names)) & 1
    design = np.column_stack([np.ones(len(drops), dtype=np.int64), drops])
    found = np.rint(np.linalg.lstsq(design.astype(float), values.astype(float), rcond=None)[0]).astype(np.int64)
    return [int(value) for value in found] if np.array_equal(design @ found, values) else None


def replayed(workspace: Workspace, columns: Columns, layer: int, unit: int, factor: float) -> dict[int, float]:
    """`work[i,u]`, times a factor."""
    if (layer, 0) not in columns.policy:
        return {columns.dropped[layer, unit]: factor}
    work = workspace.table(layer).work
    return {columns.policy[layer, p]: factor for p, mask in enumerate(work) if mask >> unit & 1}


def choice_of(workspace: Workspace, columns: Columns, values: Floats) -> tuple[int, ...]:
    """The policies in a solution."""
    choice = []
    for i in range(len(workspace.problem.layers)):
        masks = workspace.table(i).masks
        if (i, 0) in columns.policy:
            shares = [float(values[columns.policy[i, p]]) for p in range(len(masks))]
            choice.append(shares.index(max(shares)))
        else:
            mask = sum(1 << u for u in units_of(workspace, i) if values[columns.dropped[i, u]] > 0.5)
            choice.append(int(np.flatnonzero(masks == mask)[0]))
    return tuple(choice)
