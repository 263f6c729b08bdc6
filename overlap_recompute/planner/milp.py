"""The stage problem as one mixed-integer linear program, for HiGHS.

    symbol      meaning                                              column
    z[i,p]      layer i takes policy p (continuous: x decides)       Columns.policy
    x[i,u]      unit u of layer i is dropped (binary)                Columns.dropped
    y[i,u,w]    it is replayed in window w (binary)                  Columns.placed
    o[w]        overrun of window w, us                              Columns.overrun
    e[i,u,w]    bytes held of a unit whose size depends on p         Columns.extra
    P, S        prefetched bytes at their peak, working set          Columns.prefetched, .working

    minimize    sum of z[i,p] recompute[p]  -  sum of min(t[u], l[w]) y[i,u,w]  +  sum of o[w]

A window hides no more than its length, and a unit that is longer fills it. So it counts with the length of the window,
in the objective and in the load of the window: that changes no price, and makes fractions of long units worth less in
the relaxation.

`work[p,u]`: policy p makes a replay of u necessary; `work[i,u]` below is the sum of z[i,p] work[p,u].
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from overlap_recompute.planner.highs import missing_scipy
from overlap_recompute.planner.policies import Floats
from overlap_recompute.planner.workspace import Workspace, effective_deadlines

Row = tuple[dict[int, float], float]
"""Coefficients by column, and the most that their sum may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where each variable is."""

    policy: dict[tuple[int, int], int]
    dropped: dict[tuple[int, int], int]
    placed: dict[tuple[int, int, int], int]
    overrun: dict[int, int]
    extra: dict[tuple[int, int, int], int]
    prefetched: int
    working: int

    @property
    def count(self) -> int:
        """Of all variables."""
        return self.working + 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Columns and rows."""

    columns: Columns
    rows: list[Row]
    equalities: list[Row]
    objective: Floats
    byte_scale: float


def columns_of(workspace: Workspace) -> Columns:
    """Variables of a problem; windows in which a unit may not be have none."""
    problem = workspace.problem
    number = itertools.count()
    policy, dropped, placed, extra = {}, {}, {}, {}
    for i, layer in enumerate(problem.layers):
        table = workspace.table(i)
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
        prefetched=next(number),
        working=next(number),
    )


def units_of(workspace: Workspace, layer: int) -> list[int]:
    """Units that some policy of the layer drops."""
    table = workspace.table(layer)
    union = int(np.bitwise_or.reduce(table.masks))
    return [unit for unit in range(len(table.names)) if union >> unit & 1]


def _sizes(workspace: Workspace, layer: int, unit: int) -> set[int]:
    table = workspace.table(layer)
    return {int(size) for size in table.unit_bytes[table.work >> unit & 1 == 1, unit]}


def _varies(workspace: Workspace, layer: int, unit: int) -> bool:
    return len(_sizes(workspace, layer, unit)) > 1


def build_program(workspace: Workspace) -> Program:
    """All rows."""
    columns = columns_of(workspace)
    scale = float(max(1, workspace.problem.budget_bytes))
    return Program(
        columns=columns,
        rows=[
            *memory(workspace, columns, scale),
            *working_set(workspace, columns, scale),
            *prefetch(workspace, columns, scale),
            *held(workspace, columns, scale),
            *only_replays(workspace, columns),
            *window_length(workspace, columns),
            *precedence(workspace, columns),
            *due(workspace, columns),
        ],
        equalities=[*one_policy(workspace, columns), *drops(workspace, columns)],
        objective=objective(workspace, columns),
        byte_scale=scale,
    )


def objective(workspace: Workspace, columns: Columns) -> Floats:
    """[Exposed time]"""
    cost = np.zeros(columns.count)
    for (i, p), column in columns.policy.items():
        cost[column] = workspace.table(i).recompute_us[p]
    for (i, u, w), column in columns.placed.items():
        cost[column] = -_counted_us(workspace, i, u, w)
    for column in columns.overrun.values():
        cost[column] = 1.0
    return cost


def _counted_us(workspace: Workspace, layer: int, unit: int, window: int) -> float:
    return min(float(workspace.table(layer).unit_us[unit]), workspace.lengths[window])


def one_policy(workspace: Workspace, columns: Columns) -> Iterator[Row]:
    """[One policy] sum over p of z[i,p] = 1"""
    for i in range(len(workspace.problem.layers)):
        yield {columns.policy[i, p]: 1.0 for p in range(len(workspace.table(i).masks))}, 1.0


def drops(workspace: Workspace, columns: Columns) -> Iterator[Row]:
    """[Dropped] x[i,u] = sum of z[i,p] over policies that drop u"""
    for (i, u), column in columns.dropped.items():
        masks = workspace.table(i).masks
        yield {column: -1.0} | {columns.policy[i, p]: 1.0 for p, mask in enumerate(masks) if mask >> u & 1}, 0.0


def _work(workspace: Workspace, columns: Columns, i: int, u: int, factor: float) -> dict[int, float]:
    return {columns.policy[i, p]: factor for p, work in enumerate(workspace.table(i).work) if work >> u & 1}


def memory(workspace: Workspace, columns: Columns, scale: float) -> Iterator[Row]:
    """[Memory] sum of n[c] K(p) z[i,p] + P + S <= M"""
    problem = workspace.problem
    row = {columns.prefetched: 1.0, columns.working: 1.0}
    for (i, p), column in columns.policy.items():
        in_flight = problem.chunks[problem.layers[i].chunk].in_flight
        row[column] = in_flight * float(workspace.table(i).kept_bytes[p]) / scale
    yield row, problem.budget_bytes / scale


def working_set(workspace: Workspace, columns: Columns, scale: float) -> Iterator[Row]:
    """[Working set] of the layer where it is worst, above what layers behind it have freed"""
    problem = workspace.problem
    yield {columns.working: -1.0}, -problem.floor_bytes / scale
    for number, chunk in enumerate(problem.chunks):
        freed: dict[int, float] = {}
        for i in reversed(workspace.chunk(number)):
            table = workspace.table(i)
            own = {columns.policy[i, p]: float(size) / scale for p, size in enumerate(table.working_bytes)}
            yield own | freed | {columns.working: -1.0}, (chunk.freed_bytes - chunk.waiting_bytes) / scale
            freed |= {columns.policy[i, p]: -float(size) / scale for p, size in enumerate(table.kept_bytes)}
        yield freed | {columns.working: -1.0}, -chunk.end_bytes / scale


def prefetch(workspace: Workspace, columns: Columns, scale: float) -> Iterator[Row]:
    """[Prefetch] in every window: bytes of units replayed in it or before and needed behind it <= P"""
    layers = workspace.problem.layers
    for w in range(len(workspace.problem.windows)):
        row = {columns.prefetched: -1.0}
        for i, u in columns.dropped:
            if not layers[i].first_window <= w < layers[i].deadlines[u]:
                continue
            if (i, u, w) in columns.extra:
                row[columns.extra[i, u, w]] = 1.0
                continue
            size = max(_sizes(workspace, i, u), default=0) / scale
            for v in range(layers[i].first_window, w + 1):
                row[columns.placed[i, u, v]] = size
        if len(row) > 1:
            yield row, 0.0


def held(workspace: Workspace, columns: Columns, scale: float) -> Iterator[Row]:
    """[Held] e[i,u,w] >= size under the chosen policy, if u is replayed in w or before"""
    for (i, u, w), column in columns.extra.items():
        table, first = workspace.table(i), workspace.problem.layers[i].first_window
        most = float(max(_sizes(workspace, i, u))) / scale
        row = {column: -1.0}
        for p, size in enumerate(table.unit_bytes[:, u]):
            if table.work[p] >> u & 1:
                row[columns.policy[i, p]] = float(size) / scale
        row |= {columns.placed[i, u, v]: most for v in range(first, w + 1)}
        yield row, most


def only_replays(workspace: Workspace, columns: Columns) -> Iterator[Row]:
    """[One window] sum over w of y[i,u,w] <= work[i,u]"""
    for i, u in columns.dropped:
        layer = workspace.problem.layers[i]
        placed = {columns.placed[i, u, w]: 1.0 for w in range(layer.first_window, layer.deadlines[u])}
        if placed:
            yield placed | _work(workspace, columns, i, u, -1.0), 0.0


def window_length(workspace: Workspace, columns: Columns) -> Iterator[Row]:
    """[Window length] sum of min(t[u], l[w]) y[i,u,w] - o[w] <= l[w]"""
    rows: dict[int, dict[int, float]] = {w: {column: -1.0} for w, column in columns.overrun.items()}
    for (i, u, w), column in columns.placed.items():
        rows[w][column] = _counted_us(workspace, i, u, w)
    for w, row in rows.items():
        yield row, workspace.problem.windows[w].length_us


def precedence(workspace: Workspace, columns: Columns) -> Iterator[Row]:
    """[Precedence] v, which u reads, is in no later window than u"""
    for i, u in columns.dropped:
        layer, table = workspace.problem.layers[i], workspace.table(i)
        first = layer.first_window
        for v in range(len(table.names)):
            if not table.reads[u] >> v & 1 or (i, v) not in columns.dropped:
                continue
            work = _work(workspace, columns, i, v, 1.0)
            for w in range(first, layer.deadlines[u]):
                row = {columns.placed[i, u, a]: 1.0 for a in range(first, w + 1)}
                row |= {columns.placed[i, v, a]: -1.0 for a in range(first, min(w + 1, layer.deadlines[v]))}
                yield row | work, 1.0


def due(workspace: Workspace, columns: Columns) -> Iterator[Row]:
    """[Due] v is in no window that comes too late for a replay that reads it, directly or not, under the policy"""
    for i, layer in enumerate(workspace.problem.layers):
        table = workspace.table(i)
        dues = [effective_deadlines(layer.deadlines, table.reads, work) for work in table.work.tolist()]
        for v in units_of(workspace, i):
            uses = [(p, row[v]) for p, row in enumerate(dues) if table.work[p] >> v & 1]
            for limit in sorted({at for _, at in uses if at < layer.deadlines[v]}):
                late = {columns.placed[i, v, w]: 1.0 for w in range(max(limit, layer.first_window), layer.deadlines[v])}
                if late:
                    yield late | {columns.policy[i, p]: -1.0 for p, at in uses if at > limit}, 0.0


def matrix(rows: Iterable[Row], count: int) -> tuple[Any, Floats]:
    """Rows as a sparse matrix, and their right sides.

    Raises:
        SolverError: SciPy is not installed.
    """
    try:
        from scipy.sparse import csr_array  # noqa: PLC0415
    except ImportError as error:
        raise missing_scipy() from error

    data: list[float] = []
    indices: list[int] = []
    starts, sides = [0], []
    for coefficients, side in rows:
        data += coefficients.values()
        indices += coefficients.keys()
        starts.append(len(data))
        sides.append(side)
    return csr_array((data, indices, starts), shape=(len(sides), count)), np.array(sides)
