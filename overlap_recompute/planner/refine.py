"""A short look by integer programming at what the heuristics leave exposed on a stage that is solved by itself.

The programs are those of `opt`, the relaxation with banks of windows first (`overlap_recompute.planner.banks`): on a
stage of some layers it is small, and what its solution replays is put into windows. The search is bounded by nodes, so
that the same problem gets the same plan; few stages are so hard that `LIMIT_S` ends it. Without SciPy nothing is looked
at.
"""

import time

from overlap_recompute.planner.choice import lower_bound_us
from overlap_recompute.planner.highs import Solver, SolverError, solve_here
from overlap_recompute.planner.milp import call_of
from overlap_recompute.planner.opt import proven_us, steps_of
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.progress import gap_of
from overlap_recompute.planner.workspace import Workspace

GAPS = {"heu": 0.045, "mix": 0.009}
"""Of the exposed time to what is proven, up to which a stage that is solved by itself is refined."""
MOST_PLACES = 4000
"""Units of all layers times windows; a larger program takes too long before its first node."""
NODES = 200
LIMIT_S = 6.0
"""For all programs of a stage together, if the caller does not say."""


def refine(
    workspace: Workspace, found: StageSolution, gap: float, solver: Solver = solve_here, limit_s: float = LIMIT_S
) -> StageSolution:
    """The best solution known, no worse than `found`.

    Args:
        workspace: the problem with all policies that may be part of an optimum.
        found: what the heuristics have.
        gap: relative distance from what is proven that is good enough.
        solver: runs HiGHS.
        limit_s: for all programs together; 0: no look.
    """
    units = sum(len(workspace.table(layer).names) for layer in range(len(workspace.problem.layers)))
    bound_us = max(found.bound_us, lower_bound_us(workspace))
    if gap_of(found.exposed_us, bound_us) <= gap or units * len(workspace.lengths) > MOST_PLACES:
        return found
    begin_s = time.monotonic()
    try:
        for step in steps_of(workspace, solver, gap):
            left_s = limit_s - (time.monotonic() - begin_s)
            if left_s <= 0:
                break
            answer = solver(call_of(step.program, limit_s=left_s, gap=step.gap, nodes=NODES))
            bound_us = max(bound_us, proven_us(answer, step.program))
            other = None if answer.values is None else step.solution(answer.values, left_s)
            if other is not None and other.exposed_us < found.exposed_us:
                found = other
            if gap_of(found.exposed_us, bound_us) <= gap:
                break
    except SolverError:
        pass
    return found
