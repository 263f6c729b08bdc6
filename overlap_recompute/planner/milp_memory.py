"""The memory of the linear program: every moment at which much is held has a row of its own.

    [Memory] for every window w, or none:    sum of n[c] K(p)  +  bytes held in w  +  S  <=  M
    [Working set] for every layer l:         working(p[l])  -  what layers behind l have freed  <=  S
    [Held] e[i,u,w] >= bytes of u under the chosen policy, if u is replayed in w or before

The prefetched bytes at their peak are no variable: rows that hold nothing but what can be counted in whole units are
what a solver can round. For the same reason K(p) is written as a sum over dropped units wherever it is one, and S is
left out where few layers can be the one that sets it. A row that others imply is left out.
"""

from collections.abc import Iterator
from typing import NamedTuple

from overlap_recompute.planner.milp_columns import Columns, Row, by_unit, sizes_of
from overlap_recompute.planner.policies import Ints
from overlap_recompute.planner.workspace import Workspace

FEW = 3
"""Rows of the working set for which S is left out."""


class Sum(NamedTuple):
    """Bytes that depend on decisions."""

    constant: float
    factors: dict[int, float]
    """By column."""

    def plus(self, other: "Sum", factor: float = 1.0) -> "Sum":
        """This and so many times the other."""
        factors = dict(self.factors)
        for column, value in other.factors.items():
            factors[column] = factors.get(column, 0.0) + factor * value
        return Sum(self.constant + factor * other.constant, factors)

    def at_most(self, limit: float, scale: float) -> Row:
        """As a row."""
        factors = {column: value / scale for column, value in self.factors.items() if value}
        return factors, (limit - self.constant) / scale


class _Moment(NamedTuple):
    """What the working set may be, and its range."""

    total: Sum
    least_bytes: int
    most_bytes: int


NOTHING = Sum(0.0, {})


def _of_layer(workspace: Workspace, columns: Columns, layer: int, values: Ints) -> Sum:
    found = by_unit(workspace.table(layer), values)
    if found is None:
        return Sum(0.0, {columns.policy[layer, p]: float(value) for p, value in enumerate(values)})
    units = {u: float(value) for u, value in enumerate(found[1:]) if value}
    return Sum(float(found[0]), {columns.dropped[layer, u]: value for u, value in units.items()})


def memory_rows(workspace: Workspace, columns: Columns, scale: float) -> Iterator[Row]:
    """[Memory] and [Working set]"""
    problem, kept = workspace.problem, NOTHING
    for i, layer in enumerate(problem.layers):
        own = _of_layer(workspace, columns, i, workspace.table(i).kept_bytes)
        kept = kept.plus(own, problem.chunks[layer.chunk].in_flight)
    moments = list(_worst(workspace, columns))
    working = Sum(0.0, {columns.working: scale})
    sets = [moment.total for moment in moments] if len(moments) <= FEW else [working]
    for held in (NOTHING, *_held_in(workspace, columns, scale)):
        for each in sets:
            yield kept.plus(held).plus(each).at_most(problem.budget_bytes, scale)
    if len(moments) > FEW:
        for moment in moments:
            yield moment.total.plus(working, -1.0).at_most(0.0, scale)


def _worst(workspace: Workspace, columns: Columns) -> Iterator[_Moment]:
    """Moments of the backward pass that may set the working set: those that may exceed what some other one reaches."""
    moments = list(_moments(workspace, columns))
    floor_bytes = max(moment.least_bytes for moment in moments)
    first = next(moment for moment in moments if moment.least_bytes == floor_bytes)
    for moment in moments:
        if moment is first or moment.most_bytes > floor_bytes:
            yield moment


def _moments(workspace: Workspace, columns: Columns) -> Iterator[_Moment]:
    """All of `combine_memory`."""
    problem = workspace.problem
    yield _Moment(Sum(float(problem.floor_bytes), {}), problem.floor_bytes, problem.floor_bytes)
    for number, chunk in enumerate(problem.chunks):
        freed, least_bytes, most_bytes = Sum(float(chunk.freed_bytes), {}), chunk.freed_bytes, chunk.freed_bytes
        for i in reversed(workspace.chunk(number)):
            table = workspace.table(i)
            own = _of_layer(workspace, columns, i, table.working_bytes).plus(freed, -1.0)
            own = own.plus(Sum(float(chunk.waiting_bytes), {}))
            least, most = int(table.working_bytes.min()), int(table.working_bytes.max())
            yield _Moment(own, least + chunk.waiting_bytes - most_bytes, most + chunk.waiting_bytes - least_bytes)
            freed = freed.plus(_of_layer(workspace, columns, i, table.kept_bytes))
            least_bytes += int(table.kept_bytes.min())
            most_bytes += int(table.kept_bytes.max())
        end_bytes = chunk.end_bytes + chunk.freed_bytes
        yield _Moment(Sum(float(end_bytes), {}).plus(freed, -1.0), end_bytes - most_bytes, end_bytes - least_bytes)


def _held_in(workspace: Workspace, columns: Columns, scale: float) -> Iterator[Sum]:
    """Bytes of units replayed in a window or before and needed behind it, for each window where that is most."""
    layers = workspace.problem.layers
    due = {layers[i].deadlines[u] for i, u in columns.dropped}
    for w in range(len(workspace.problem.windows)):
        if w + 1 not in due:  # all that is held in w is held in the next window too
            continue
        held: dict[int, float] = {}
        for i, u in columns.dropped:
            if not layers[i].first_window <= w < layers[i].deadlines[u]:
                continue
            if (i, u, w) in columns.extra:
                held[columns.extra[i, u, w]] = scale
                continue
            size = float(max(sizes_of(workspace, i, u), default=0))
            for v in range(layers[i].first_window, w + 1):
                held[columns.placed[i, u, v]] = size
        yield Sum(0.0, held)


def held(workspace: Workspace, columns: Columns, scale: float) -> Iterator[Row]:
    """[Held]"""
    for (i, u, w), column in columns.extra.items():
        table, first = workspace.table(i), workspace.problem.layers[i].first_window
        most = float(max(sizes_of(workspace, i, u))) / scale
        row = {column: -1.0}
        for p, size in enumerate(table.unit_bytes[:, u]):
            if table.work[p] >> u & 1:
                row[columns.policy[i, p]] = float(size) / scale
        row |= {columns.placed[i, u, v]: most for v in range(first, w + 1)}
        yield row, most
