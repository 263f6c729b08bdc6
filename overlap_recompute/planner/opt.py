"""`opt`: the optimum of a stage by mixed-integer programming, with a proven bound; needs SciPy.

HiGHS runs in slices, each four times as long as the one before. Each slice looks only for what is better than the best
solution known, so the first one starts from what `mix` found; between slices progress is reported. Ctrl-C ends the
search with the best solution so far: at once where HiGHS runs in a process of its own (`SolverProcess`), else when the
slice is over.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from overlap_recompute.planner.highs import INFEASIBLE, OPTIMAL, OTHER, UNBOUNDED, Call, Solver, solve_here
from overlap_recompute.planner.milp import Program, Row, build_program, matrix
from overlap_recompute.planner.packing import Effort
from overlap_recompute.planner.problem import Fill, StageSolution
from overlap_recompute.planner.progress import Progress, Report, gap_of
from overlap_recompute.planner.workspace import Workspace, assemble, price

GAP = 0.01
FIRST_SLICE_S = 2.0
_LONGER = 4
_EPSILON = 1e-6


class _Slice(NamedTuple):
    status: int
    bound_us: float
    solution: StageSolution | None


def improve(
    workspace: Workspace,
    best: StageSolution | None,
    *,
    limit_s: float,
    gap: float = GAP,
    report: Report | None = None,
    solver: Solver = solve_here,
    stop: threading.Event | None = None,
) -> StageSolution | None:
    """Search until the gap is proven or time is up; None if there is no solution or none was found.

    Args:
        workspace: the problem, with all policies that may matter.
        best: where to start from, with its bound.
        limit_s: how long to search.
        gap: relative gap that is good enough.
        report: told about progress, from time to time.
        solver: runs HiGHS.
        stop: no search when it is set; an interrupt sets it.

    Raises:
        SolverError: SciPy is not installed.
        KeyboardInterrupt: there is no solution yet to end the search with.
    """
    begin_s, slice_s = time.monotonic(), FIRST_SLICE_S
    bound_us = 0.0 if best is None else best.bound_us
    stop = stop or threading.Event()
    try:
        program = build_program(workspace)
        while not (stop.is_set() and best is not None):
            exposed_us = np.inf if best is None else best.exposed_us
            left_s = limit_s - (time.monotonic() - begin_s)
            if report is not None:
                elapsed_s = time.monotonic() - begin_s
                report(
                    Progress(
                        stage=workspace.problem.stage, exposed_us=exposed_us, bound_us=bound_us, elapsed_s=elapsed_s
                    )
                )
            if gap_of(exposed_us, bound_us) <= gap or left_s <= 0:
                break
            found = _search(workspace, program, exposed_us, gap, min(slice_s, left_s), solver)
            slice_s *= _LONGER
            if found.solution is not None and found.solution.exposed_us < exposed_us:
                best = found.solution
            bound_us = max(bound_us, found.bound_us)
            if found.status in (INFEASIBLE, OPTIMAL):
                break
    except KeyboardInterrupt:
        if best is None or stop.is_set():
            raise
        stop.set()
    return None if best is None else replace(best, bound_us=min(bound_us, best.exposed_us))


def _search(
    workspace: Workspace, program: Program, below_us: float, gap: float, limit_s: float, solver: Solver
) -> _Slice:
    """One run of HiGHS for something better than `below_us`."""
    columns = program.columns
    escape = columns.count
    limit_us = below_us - max(_EPSILON, below_us * max(_EPSILON, gap / 4)) if np.isfinite(below_us) else np.inf
    can_escape = np.isfinite(limit_us)
    rows, sides = matrix(_with_escape(program.rows, escape), escape + 1)
    equal_rows, equal_sides = matrix(_with_escape(program.equalities, escape), escape + 1)
    scale_us = max(1.0, float(np.max(np.abs(program.objective))))
    integral, upper = np.zeros(escape + 1), np.ones(escape + 1)
    for column in (*columns.dropped.values(), *columns.placed.values(), escape):
        integral[column] = 1
    upper[list(columns.overrun.values())] = sum(float(np.sum(workspace.table(i).unit_us)) for i in _layers(workspace))
    upper[escape] = float(can_escape)
    answer = solver(
        Call(
            objective=np.append(program.objective, limit_us if can_escape else 0.0) / scale_us,
            rows=rows,
            sides=sides,
            equal_rows=equal_rows,
            equal_sides=equal_sides,
            upper=upper,
            integral=integral,
            limit_s=limit_s,
            gap=gap / 2,
        )
    )
    bound_us = answer.bound * scale_us if answer.bound is not None and np.isfinite(answer.bound) else 0.0
    # Beyond the limit the search proves nothing.
    bound_us = max(0.0, min(bound_us, limit_us))
    values = answer.values
    escaped = values is not None and values[escape] > 0.5
    solution = None if values is None or escaped else _read(workspace, program, values)
    # All variables have bounds: "infeasible or unbounded" can only mean the former.
    if values is None and answer.status in (INFEASIBLE, UNBOUNDED, OTHER):
        return _Slice(INFEASIBLE, limit_us if can_escape else 0.0, None)
    return _Slice(answer.status, bound_us, solution)


def _with_escape(rows: Iterable[Row], column: int) -> Iterator[Row]:
    """Rows that all hold when the escape is 1 and all else 0, and are as they were when it is 0.

    The escape costs what a solution must cost less than. The solver thus has a solution from the start, leaves out all
    that is no better, and always reports a bound; a limit on the objective leaves it without both.
    """
    for coefficients, side in rows:
        yield coefficients | {column: side} if side else coefficients, side


def _layers(workspace: Workspace) -> range:
    return range(len(workspace.problem.layers))


def _read(workspace: Workspace, program: Program, values: Any) -> StageSolution | None:
    """The better of the program's windows and those of the packing heuristic, for its choice of policies."""
    columns, layers = program.columns, range(len(workspace.problem.layers))
    choice = tuple(
        max(range(len(workspace.table(i).masks)), key=lambda p: values[columns.policy[i, p]]) for i in layers
    )
    fills = [Fill(layer=i, unit=u, window=w) for (i, u, w), column in columns.placed.items() if values[column] > 0.5]
    found = assemble(workspace, choice, fills)
    if found.total_bytes > workspace.problem.budget_bytes:  # the solver's tolerance
        return price(workspace, choice, Effort(width=8, sums=64, jobs=10))
    return found
