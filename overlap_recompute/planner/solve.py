"""One stage problem in, its solution out: the planners by name, and a memory of what was solved already."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.profile import LayerKind
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.planner.anneal import MOVES
from overlap_recompute.planner.baselines import COMMON, Dropped, least_recompute, without_windows
from overlap_recompute.planner.build import ALL_KINDS
from overlap_recompute.planner.heu import solve_heu
from overlap_recompute.planner.highs import Solver, SolverError, solve_here
from overlap_recompute.planner.infeasible import SEARCHING, InfeasibleError
from overlap_recompute.planner.mix import solve_mix
from overlap_recompute.planner.opt import GAP, Leftover, improve
from overlap_recompute.planner.packing import Effort
from overlap_recompute.planner.policies import PolicyTable, exact, front, price_policies, priced_working
from overlap_recompute.planner.problem import StageProblem, StageSolution
from overlap_recompute.planner.progress import Report
from overlap_recompute.planner.refine import GAPS, LIMIT_S, refine
from overlap_recompute.planner.search import smallest
from overlap_recompute.planner.workspace import Workspace, assemble, loads, price, rests

STATES = 4096
"""Of the dynamic program of adapipe."""
CHECKMATE_S = 1.0
"""For checkmate's program, a stage. Layers of one kind can be exchanged, which such a program is slow to see through;
it starts from what adapipe found."""
EFFORT = Effort(width=4, sums=24, jobs=6)
"""With which early fills its waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How hard opt searches, and how long what is exposed is annealed."""

    limit_s: float = 60.0
    """For each distinct stage problem."""
    gap: float = GAP
    """Proven relative gap that is good enough."""
    report: Report | None = None
    """Told about progress, from time to time."""
    solver: Solver = solve_here
    """Runs HiGHS: in this process, or in another one that Ctrl-C can end at once."""
    moves: int = MOVES
    """Of annealing, for a stage on which `mix` leaves something exposed; half as many for `heu`."""
    stop: threading.Event | None = None
    """Set by the first Ctrl-C, and looked at before each search; None: Ctrl-C ends the search of one stage."""
    last_look_s: float = LIMIT_S
    """Most that `heu` and `mix` spend on integer programming for a stage that is solved by itself; 0: nothing."""
    leftover: Leftover | None = None
    """Of the searches before, which this one may use on top of its limit; None: it may not."""


class Memory:
    """What has been priced and solved so far; make one and pass it to all calls that belong together.

    A solution that was found for a smaller budget is a solution for a larger one, so plans made with one memory in
    rising order of budgets never get slower.
    """

    __slots__ = ("_tables", "_exact", "_working", "_fronts", "_solutions")

    def __init__(self) -> None:
        self._tables: dict[LayerKind, PolicyTable] = {}
        self._exact: dict[LayerKind, PolicyTable] = {}
        self._working: dict[LayerKind, dict[int, int]] = {}
        self._fronts: dict[tuple[LayerKind, float, tuple[int, ...]], PolicyTable] = {}
        self._solutions: dict[tuple[object, ...], list[tuple[int, float, StageSolution | None]]] = {}

    def table(self, kind: LayerKind) -> PolicyTable:
        """All policies of a layer kind."""
        if kind not in self._tables:
            self._tables[kind] = price_policies(kind)
        return self._tables[kind]

    def exact(self, kind: LayerKind) -> PolicyTable:
        """Those that may be part of an optimum."""
        if kind not in self._exact:
            self._exact[kind] = exact(self.table(kind))
        return self._exact[kind]

    def front(self, problem: StageProblem, number: int) -> PolicyTable:
        """Those that fast planners look at, for a kind of the problem's layers."""
        kind, layer = problem.kinds[number], next(layer for layer in problem.layers if layer.kind == number)
        longest_us = max((window.length_us for window in problem.windows), default=0.0)
        key = kind, longest_us, tuple(deadline - layer.own_window for deadline in layer.deadlines)
        if key not in self._fronts:
            table = price_policies(kind, with_working=False)
            rows = front(table, loads(problem, number, table), rests(problem, table))
            self._fronts[key] = priced_working(kind, rows, self._working.setdefault(kind, {}))
        return self._fronts[key]

    def recall(self, key: tuple[object, ...], budget_bytes: int, limit_s: float) -> tuple[bool, StageSolution | None]:
        """Whether this very problem was searched for so long, and the best solution of its like that fits."""
        entries = self._solutions.get(key, [])
        known = any(budget == budget_bytes and limit >= limit_s for budget, limit, _ in entries)
        fitting = [found for *_, found in entries if found is not None and found.total_bytes <= budget_bytes]
        best = min(fitting, key=lambda found: found.exposed_us, default=None)
        # A bound holds for its own budget and smaller ones only.
        bounds = [found.bound_us for budget, _, found in entries if found is not None and budget >= budget_bytes]
        return known, None if best is None else replace(best, bound_us=max(bounds, default=0.0))

    def store(self, key: tuple[object, ...], budget_bytes: int, limit_s: float, found: StageSolution | None) -> None:
        """Remember a solution."""
        self._solutions.setdefault(key, []).append((budget_bytes, limit_s, found))


Planner = Callable[[StageProblem, Memory, Search], StageSolution | None]
"""Solves a stage; None if nothing fits."""


def window_kinds_of(planner: str) -> tuple[str, ...]:
    """Kinds of windows that a planner fills."""
    if planner in SEARCHING:
        return ALL_KINDS
    return (WindowKind.PP_WAIT.value,) if planner == "early" else ()


def solve_stage(
    problem: StageProblem, planner: str = "heu", *, memory: Memory | None = None, search: Search = Search()
) -> StageSolution:
    """Solve one stage.

    Args:
        problem: what to solve.
        planner: a name of `PLANNERS`; those that take one choice for all stages take it for this one alone.
        memory: of earlier calls; identical problems are solved once.
        search: how long to search.

    Raises:
        InfeasibleError: nothing fits into the memory.
        ConfigError: no such planner.
        SolverError: the planner needs a solver that is not installed, or found nothing in time.
    """
    check_planner(planner)
    memory = Memory() if memory is None else memory
    if planner in COMMON:
        return solve_common([problem], planner, memory)[0]
    *rest, _ = problem.content()
    key, budget_bytes, limit_s = (
        (planner, search.gap, search.moves, search.last_look_s, *rest),
        problem.budget_bytes,
        search.limit_s,
    )
    known, best = memory.recall(key, budget_bytes, limit_s)
    if not known:
        memory.store(key, budget_bytes, limit_s, _BY_STAGE[planner](problem, memory, search))
        best = memory.recall(key, budget_bytes, limit_s)[1]
    if best is None:
        raise infeasible(problem, planner, memory)
    return best


def solve_common(problems: Sequence[StageProblem], planner: str, memory: Memory) -> list[StageSolution]:
    """The first of a baseline's choices for all stages that fits on each of them.

    Raises:
        InfeasibleError: none does; with the stage that is furthest from it.
    """
    closest: tuple[int, int, int] | None = None
    for choice in COMMON[planner](problems):
        found = [priced(problem, dropped, memory) for problem, dropped in zip(problems, choice, strict=True)]
        short = [solution.total_bytes - problem.budget_bytes for solution, problem in zip(found, problems, strict=True)]
        if max(short) <= 0:
            return found
        further = sum(nbytes > 0 for nbytes in short) - 1
        worst = (max(short), further, problems[short.index(max(short))].stage)
        closest = worst if closest is None else min(closest, worst)
    assert closest is not None
    raise InfeasibleError(closest[2], closest[0], planner, further_stages=closest[1])


def worst_infeasible(error: InfeasibleError, problems: Sequence[StageProblem], memory: Memory) -> InfeasibleError:
    """The error for the stage that is furthest from fitting, where one stage after the other is solved."""
    short = [least_bytes(problem, memory) - problem.budget_bytes for problem in problems]
    worst = max(range(len(short)), key=short.__getitem__)
    further = sum(nbytes > 0 for nbytes in short) - 1
    return InfeasibleError(problems[worst].stage, short[worst], error.planner, further_stages=further)


def priced(problem: StageProblem, dropped: Dropped, memory: Memory) -> StageSolution:
    """The price of given dropped sets on demand, whether or not they fit."""
    workspace = Workspace(problem, [memory.table(kind) for kind in problem.kinds])
    choice = tuple(workspace.table(layer).find(names) for layer, names in enumerate(dropped))
    return assemble(workspace, choice, ())


def least_bytes(problem: StageProblem, memory: Memory) -> int:
    """Memory that the smallest choice of policies needs, nothing prefetched."""
    unlimited = replace(problem, budget_bytes=1 << 62)
    workspace = Workspace(unlimited, [memory.exact(kind) for kind in problem.kinds])
    return min((sum(workspace.memory(choice)) for choice in smallest(workspace)), default=problem.floor_bytes)


def infeasible(problem: StageProblem, planner: str, memory: Memory) -> Exception:
    """Why nothing was found."""
    short_bytes = least_bytes(problem, memory) - problem.budget_bytes
    if short_bytes > 0:
        return InfeasibleError(problem.stage, short_bytes, planner)
    return SolverError(
        f"no plan for stage {problem.stage} within the time limit",
        "a search that finds one",
        "raise --time-limit-s, or use --planner heu",
    )


def check_planner(planner: str) -> None:
    """Refuse a name that is none.

    Raises:
        ConfigError: with the names.
    """
    if planner not in PLANNERS:
        raise ConfigError(f"the planner {planner}", f"one of {', '.join(PLANNERS)}", "correct the name")


def fast_workspace(problem: StageProblem, memory: Memory) -> Workspace:
    """With the policies that fast planners look at."""
    return Workspace(problem, [memory.front(problem, number) for number in range(len(problem.kinds))])


def exact_workspace(problem: StageProblem, memory: Memory) -> Workspace:
    """With all policies that may be part of an optimum."""
    return Workspace(problem, [memory.exact(kind) for kind in problem.kinds])


def _heu(problem: StageProblem, memory: Memory, search: Search) -> StageSolution | None:
    exact = partial(exact_workspace, problem, memory)
    found = solve_heu(fast_workspace(problem, memory), exact, search.moves // 2)
    return _looked_at(exact, found, "heu", search)


def _mix(problem: StageProblem, memory: Memory, search: Search) -> StageSolution | None:
    exact = partial(exact_workspace, problem, memory)
    found = solve_mix(fast_workspace(problem, memory), exact, search.moves)
    return _looked_at(exact, found, "mix", search)


def _looked_at(
    exact: Callable[[], Workspace], found: StageSolution | None, planner: str, search: Search
) -> StageSolution | None:
    """With a last look, if the stage is solved by itself."""
    if found is None or search.moves < MOVES or search.last_look_s <= 0:
        return found
    return refine(exact(), found, GAPS[planner], search.solver, search.last_look_s)


def _opt(problem: StageProblem, memory: Memory, search: Search) -> StageSolution | None:
    start = _mix(problem, memory, search)
    if start is None and least_bytes(problem, memory) > problem.budget_bytes:
        return None
    workspace, leftover, begin_s = exact_workspace(problem, memory), search.leftover or Leftover(), time.monotonic()
    limit_s, leftover.seconds = search.limit_s + leftover.seconds, 0.0
    try:
        return improve(
            workspace, start, limit_s=limit_s, gap=search.gap, report=search.report, solver=search.solver,
            stop=search.stop,
        )  # fmt: skip
    finally:
        leftover.seconds = max(0.0, limit_s - (time.monotonic() - begin_s))


def _checkmate(problem: StageProblem, memory: Memory, search: Search) -> StageSolution | None:
    blind = without_windows(problem)
    start = least_recompute(exact_workspace(blind, memory), STATES)
    if start is None and least_bytes(problem, memory) > problem.budget_bytes:
        return None
    limit_s = min(CHECKMATE_S, search.limit_s)
    return improve(exact_workspace(blind, memory), start, limit_s=limit_s, gap=search.gap, solver=search.solver)


def _adapipe(problem: StageProblem, memory: Memory, search: Search) -> StageSolution | None:
    return least_recompute(exact_workspace(without_windows(problem), memory), STATES)


def _early(problem: StageProblem, memory: Memory, search: Search) -> StageSolution | None:
    found = least_recompute(exact_workspace(without_windows(problem), memory), STATES)
    if found is None:
        return None
    workspace = Workspace(problem, [memory.table(kind) for kind in problem.kinds])
    choice = tuple(workspace.table(layer).find(names) for layer, names in enumerate(found.dropped))
    return price(workspace, choice, EFFORT)


_BY_STAGE: Mapping[str, Planner] = {
    "heu": _heu,
    "mix": _mix,
    "opt": _opt,
    "checkmate": _checkmate,
    "adapipe": _adapipe,
    "early": _early,
}
PLANNERS = (*_BY_STAGE, *COMMON)
"""Names of all planners."""
