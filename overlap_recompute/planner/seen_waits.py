"""Pipelines with several chunks on a stage: choices that make use of the waits that a simulation shows.

Which of a stage's chunks waits, and how long, follows from no formula there (`planner/pipeline.py`, 4 of the NOTE): a
plan that takes no wait into account is simulated, and its stages are solved once more with the waits that it has. Their
choices of dropped units are taken, and filled by need. What a stage hides makes the others wait less, so this is done
again with the waits of the better plan, as long as it gets faster.
"""

from collections.abc import Callable
from dataclasses import replace

from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.split import Split
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.planner.mix import EFFORT
from overlap_recompute.planner.pipeline import Pipeline, Solved, solve, waits_in
from overlap_recompute.planner.problem import StageProblem, StageSolution
from overlap_recompute.planner.solve import Memory, Search, exact_workspace, window_kinds_of
from overlap_recompute.planner.workspace import price
from overlap_recompute.simulator.stage_waits import StageWaits, waits_by_chunk

ROUNDS = 3
"""At most, behind the search that ignores waits."""
_LEAST_US = 1e-6

Simulated = tuple[Plan, list[Solved]]
"""A plan with its predicted time, and what it was made of."""


def searches_of(split: Split) -> int:
    """How often each stage may be searched: a limit of time has to last for all of them."""
    return 1 if len(split) == 1 or len(split[0]) == 1 else 1 + ROUNDS


def with_seen_waits(
    start: Simulated,
    pipeline: Pipeline,
    memory: Memory,
    search: Search,
    made: Callable[[list[Solved]], Plan],
) -> Plan:
    """The plan, or a faster one that its waits lead to.

    Args:
        start: that ignores waits.
        pipeline: with more than one chunk on each stage; else `start` is returned.
        memory, search: of the planner.
        made: makes a plan of solved stages.
    """
    best, solved = start
    if searches_of(pipeline.split) == 1:
        return best
    if WindowKind.PP_WAIT.value not in window_kinds_of(pipeline.planner):
        return best
    for _ in range(ROUNDS):
        seen = zip(solved, waits_by_chunk(pipeline.profile, best), strict=True)
        solved = [_solved_again(pipeline, *each, waits, memory, search) for each, waits in seen]
        plan = made(solved)
        if plan.predicted_iteration_us >= best.predicted_iteration_us:
            break
        best = plan
    return best


def _solved_again(
    pipeline: Pipeline, problem: StageProblem, found: StageSolution, waits: StageWaits, memory: Memory, search: Search
) -> Solved:
    if found.exposed_us <= _LEAST_US:
        return problem, found
    waiting = pipeline.problem(problem.stage, waits=waits)
    if not waits_in(waiting):
        return problem, found
    choice = solve(waiting, pipeline.planner, memory, search)
    workspace = exact_workspace(problem, memory)
    rows = tuple(workspace.table(layer).find(names) for layer, names in enumerate(choice.dropped))
    again = price(workspace, rows, EFFORT)
    assert again is not None  # it fits even with what it prefetches in waits
    return problem, replace(again, bound_us=min(found.bound_us, again.exposed_us))
