"""`opt`: the optimum of a stage by mixed-integer programming, with a proven bound; needs SciPy.

HiGHS first solves a relaxation that takes all windows between two deadlines for one (`banks.py`, `patterns.py`). It is
far smaller, and its optimum is that of the stage or hardly less: it proves the bound, and what it drops and replays is
put into windows (`spread.py`). What is open then is left to the program with all windows.

HiGHS runs in slices, each six times as long as the one before; what is left of the time limit is not divided into a
slice and a shorter one. Between slices progress is reported. Ctrl-C ends the search with the best solution so far: at
once where HiGHS runs in a process of its own (`SolverProcess`), else when the slice is over.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from overlap_recompute.planner.banks import with_banks
from overlap_recompute.planner.highs import OPTIMAL, OUT_OF_TIME, Answer, Solver, solve_here
from overlap_recompute.planner.milp import Program, build_program, call_of, fills_of
from overlap_recompute.planner.milp_columns import choice_of
from overlap_recompute.planner.packing import Effort
from overlap_recompute.planner.patterns import with_patterns
from overlap_recompute.planner.policies import Floats
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.progress import Progress, Report, gap_of
from overlap_recompute.planner.spread import Spreader
from overlap_recompute.planner.workspace import Workspace, assemble, price

GAP = 0.01
FIRST_SLICE_S = 1.0
_LONGER = 6
_LEAST_S = 0.01
SHARES = (0.9, 0.1)
"""Of the gap that is good enough, for HiGHS on the relaxation: the rest is for what is lost when replays are put into
windows. Where that is more, HiGHS goes on."""
_EFFORT = Effort(width=8, sums=64, jobs=10)
_EPSILON = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A program to solve, and how values of its variables become a solution of the stage, in so many seconds."""

    program: Program
    gap: float
    solution: Callable[[Floats, float], StageSolution | None]


class Leftover:
    """Time that searches of opt have not used, for those that follow."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0


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
    stop = stop or threading.Event()
    search = _Search(workspace, best, limit_s=limit_s, gap=gap, report=report, solver=solver)
    try:
        while not (stop.is_set() and search.best is not None) and not search.is_over():
            search.slice()
    except KeyboardInterrupt:
        if search.best is None or stop.is_set():
            raise
        stop.set()
    return search.result()


class _Search:
    """What is known of a stage, and what to solve next."""

    __slots__ = ("best", "_bound_us", "_workspace", "_begin_s", "_limit_s", "_gap", "_report", "_solver", "_steps",
                 "_step", "_slice_s")  # fmt: skip

    def __init__(
        self,
        workspace: Workspace,
        best: StageSolution | None,
        *,
        limit_s: float,
        gap: float,
        report: Report | None,
        solver: Solver,
    ) -> None:
        self.best, self._bound_us, self._workspace = best, 0.0 if best is None else best.bound_us, workspace
        self._begin_s, self._limit_s, self._gap = time.monotonic(), limit_s, gap
        self._report, self._solver, self._slice_s = report, solver, FIRST_SLICE_S
        self._steps = steps_of(workspace, solver, gap)
        self._step: Step | None = None

    @property
    def exposed_us(self) -> float:
        """Of the best solution."""
        return np.inf if self.best is None else self.best.exposed_us

    @property
    def left_s(self) -> float:
        """Of the time limit."""
        return self._limit_s - (time.monotonic() - self._begin_s)

    def is_over(self) -> bool:
        """Whether enough is proven, time is up, or nothing is left to solve; tells how far the search is."""
        if self._report is not None:
            self._report(
                Progress(
                    stage=self._workspace.problem.stage,
                    exposed_us=self.exposed_us,
                    bound_us=self._bound_us,
                    elapsed_s=self._limit_s - self.left_s,
                )
            )
        if gap_of(self.exposed_us, self._bound_us) <= self._gap or self.left_s <= 0:
            return True
        self._step = self._step or next(self._steps, None)
        return self._step is None

    def slice(self) -> None:
        """One run of HiGHS."""
        assert self._step is not None
        program, solution, left_s = self._step.program, self._step.solution, self.left_s
        limit_s = self._slice_s if 2 * self._slice_s < left_s else left_s
        answer = self._solver(call_of(program, limit_s=max(limit_s, _LEAST_S), gap=self._step.gap))
        self._bound_us = max(self._bound_us, proven_us(answer, program))
        self._slice_s *= _LONGER
        if answer.status != OUT_OF_TIME:
            self._step, self._slice_s = None, FIRST_SLICE_S * _LONGER
            if answer.status != OPTIMAL and self.best is None:
                self._steps = iter(())  # what has no solution with banks has none
        found = None if answer.values is None else solution(answer.values, self.left_s)
        if found is not None and found.exposed_us < self.exposed_us:
            self.best = found

    def result(self) -> StageSolution | None:
        """The best solution, with what is proven of it."""
        return self.best and replace(self.best, bound_us=min(self._bound_us, self.best.exposed_us))


def steps_of(workspace: Workspace, solver: Solver, gap: float) -> Iterator[Step]:
    """What to solve, one after the other: the relaxation, if there is one, and the program with all windows."""
    banks = with_banks(workspace)
    if banks.is_smaller:
        relaxed = with_patterns(build_program(banks.workspace, banks.most_us), banks, workspace.lengths)
        spread = Spreader(workspace, banks, relaxed, solver)
        for share in SHARES if gap else SHARES[:1]:
            yield Step(program=relaxed, gap=gap * share, solution=spread)
    program = build_program(workspace)
    yield Step(program=program, gap=gap * SHARES[0], solution=lambda values, _: _read(workspace, program, values))


def proven_us(answer: Answer, program: Program) -> float:
    """What no solution is below, in the unit of the objective and less what the solver tolerates."""
    if answer.bound is None or not np.isfinite(answer.bound):
        return 0.0
    return max(0.0, answer.bound * program.scale_us * (1 - _EPSILON))


def _read(workspace: Workspace, program: Program, values: Floats) -> StageSolution | None:
    """The program's solution, or that of the packing heuristic for its choice of policies."""
    choice = choice_of(workspace, program.columns, values)
    found = assemble(workspace, choice, fills_of(program, values))
    if found.total_bytes > workspace.problem.budget_bytes:  # the solver's tolerance
        return price(workspace, choice, _EFFORT)
    return found
