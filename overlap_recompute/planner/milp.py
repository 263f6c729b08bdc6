"""The stage problem as one mixed-integer linear program, for HiGHS.

    symbol      meaning                                              column
    z[i,p]      layer i takes policy p (continuous: x decides);      Columns.policy
                none where all prices are sums over x[i,u]
    x[i,u]      unit u of layer i is dropped (binary)                Columns.dropped
    y[i,u,w]    it is replayed in window w (binary)                  Columns.placed
    o[w]        overrun of window w, us                              Columns.overrun
    e[i,u,w]    bytes held of a unit whose size depends on p         Columns.extra
    S           working set                                          Columns.working

    minimize    sum of z[i,p] recompute[p]  -  sum of min(t[u], h[w]) y[i,u,w]  +  sum of o[w]

A window hides no more of a unit than h[w], its length, and a unit that is longer fills it. So the unit counts with that
in the objective and in the load of the window: that changes no price, and makes fractions of long units worth less in
the relaxation. The window of a bank (`overlap_recompute.planner.banks`) is as long as all of its windows together, and
hides of one unit no more than the longest of them.

`work[p,u]`: policy p makes a replay of u necessary; `work[i,u]` below is the sum of z[i,p] work[p,u].
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from overlap_recompute.planner.highs import Call, missing_scipy
from overlap_recompute.planner.milp_columns import Columns, Row, columns_of, replayed, units_of
from overlap_recompute.planner.milp_memory import held, memory_rows
from overlap_recompute.planner.policies import Floats
from overlap_recompute.planner.problem import Fill
from overlap_recompute.planner.workspace import Workspace, effective_deadlines

Counted = Mapping[tuple[int, int, int], float]
"""With how many us a unit of a layer counts in a window."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Columns and rows."""

    columns: Columns
    rows: list[Row]
    equalities: list[Row]
    objective: Floats
    upper: Floats
    """Of each variable; the least is 0."""
    integral: Floats
    """1 where a variable must be whole."""

    @property
    def scale_us(self) -> float:
        """What the objective is divided by for the solver."""
        return max(1.0, float(np.max(np.abs(self.objective))))


def build_program(workspace: Workspace, most_us: Sequence[float] | None = None) -> Program:
    """All rows.

    Args:
        workspace: the problem.
        most_us: of one unit that each window hides, if that is less than its length.
    """
    columns = columns_of(workspace)
    most_us = workspace.lengths if most_us is None else most_us
    counted = {(i, u, w): min(float(workspace.table(i).unit_us[u]), most_us[w]) for i, u, w in columns.placed}
    scale = float(max(1, *(int(table.kept_bytes.max()) for table in workspace.tables)))
    upper, integral = np.ones(columns.count), np.zeros(columns.count)
    integral[[*columns.dropped.values(), *columns.placed.values()]] = 1
    upper[list(columns.overrun.values())] = sum(counted.values())
    upper[[*columns.extra.values(), columns.working]] = max(0, workspace.problem.budget_bytes) / scale
    return Program(
        columns=columns,
        rows=[
            *memory_rows(workspace, columns, scale),
            *held(workspace, columns, scale),
            *only_replays(workspace, columns),
            *window_length(workspace, columns, counted),
            *precedence(workspace, columns),
            *due(workspace, columns),
        ],
        equalities=[*one_policy(workspace, columns), *drops(workspace, columns)],
        objective=objective(workspace, columns, counted),
        upper=upper,
        integral=integral,
    )


def objective(workspace: Workspace, columns: Columns, counted: Counted) -> Floats:
    """[Exposed time]"""
    cost = np.zeros(columns.count)
    for (i, p), column in columns.policy.items():
        cost[column] = workspace.table(i).recompute_us[p]
    for (i, u), column in columns.dropped.items():
        if (i, 0) not in columns.policy:
            cost[column] = workspace.table(i).unit_us[u]
    for place, column in columns.placed.items():
        cost[column] = -counted[place]
    for column in columns.overrun.values():
        cost[column] = 1.0
    return cost


def one_policy(workspace: Workspace, columns: Columns) -> Iterator[Row]:
    """[One policy] sum over p of z[i,p] = 1"""
    rows: dict[int, dict[int, float]] = {i: {} for i, _ in columns.policy}
    for (i, _), column in columns.policy.items():
        rows[i][column] = 1.0
    yield from ((row, 1.0) for row in rows.values())


def drops(workspace: Workspace, columns: Columns) -> Iterator[Row]:
    """[Dropped] x[i,u] = sum of z[i,p] over policies that drop u"""
    for (i, u), column in columns.dropped.items():
        masks = workspace.table(i).masks
        if (i, 0) not in columns.policy:
            continue
        yield {column: -1.0} | {columns.policy[i, p]: 1.0 for p, mask in enumerate(masks) if mask >> u & 1}, 0.0


def only_replays(workspace: Workspace, columns: Columns) -> Iterator[Row]:
    """[One window] sum over w of y[i,u,w] <= work[i,u]"""
    for i, u in columns.dropped:
        layer = workspace.problem.layers[i]
        placed = {columns.placed[i, u, w]: 1.0 for w in range(layer.first_window, layer.deadlines[u])}
        if placed:
            yield placed | replayed(workspace, columns, i, u, -1.0), 0.0


def window_length(workspace: Workspace, columns: Columns, counted: Counted) -> Iterator[Row]:
    """[Window length] sum of min(t[u], h[w]) y[i,u,w] - o[w] <= l[w]"""
    rows: dict[int, dict[int, float]] = {w: {column: -1.0} for w, column in columns.overrun.items()}
    for place, column in columns.placed.items():
        rows[place[2]][column] = counted[place]
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
            work = replayed(workspace, columns, i, v, 1.0)
            for w in range(first, layer.deadlines[u]):
                row = {columns.placed[i, u, a]: 1.0 for a in range(first, w + 1)}
                row |= {columns.placed[i, v, a]: -1.0 for a in range(first, min(w + 1, layer.deadlines[v]))}
                yield row | work, 1.0


def due(workspace: Workspace, columns: Columns) -> Iterator[Row]:
    """[Due] v is in no window that comes too late for a replay that reads it, directly or not, under the policy"""
    for i, layer in enumerate(workspace.problem.layers):
        table = workspace.table(i)
        if (i, 0) not in columns.policy:
            continue
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


def call_of(
    program: Program, *, limit_s: float, gap: float, upper: Floats | None = None, nodes: int | None = None
) -> Call:
    """For the solver.

    Args:
        program: what to solve.
        limit_s: how long.
        gap: relative one at which it may stop.
        upper: in place of the program's own limits of its variables.
        nodes: most nodes of its tree.

    Raises:
        SolverError: SciPy is not installed.
    """
    count = len(program.objective)
    rows, sides = matrix(program.rows, count)
    equal_rows, equal_sides = matrix(program.equalities, count)
    return Call(
        objective=program.objective / program.scale_us,
        rows=rows,
        sides=sides,
        equal_rows=equal_rows,
        equal_sides=equal_sides,
        upper=program.upper if upper is None else upper,
        integral=program.integral,
        limit_s=limit_s,
        gap=gap,
        nodes=nodes,
    )


def fills_of(program: Program, values: Floats) -> list[Fill]:
    """The replays in a solution."""
    return [
        Fill(layer=i, unit=u, window=w) for (i, u, w), column in program.columns.placed.items() if values[column] > 0.5
    ]
