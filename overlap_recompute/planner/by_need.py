"""Choices that suit how windows are filled at run time.

A host that polls its communication fills by need: what backward needs first is replayed first, and a unit for which
there is no memory ends the fill. The windows of a solution are an ideal beside that: where memory for prefetching is
short, it may hide what no filling by need hides. So a solution whose replays are exposed by need is compared with other
choices of dropped units, all of them filled by need as the simulator does it (`pass_times`), and the best one is taken.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from overlap_recompute.planner.choice import evaluate
from overlap_recompute.planner.infeasible import SEARCHING
from overlap_recompute.planner.mix import EFFORT, candidates
from overlap_recompute.planner.pipeline import Pipeline, Room, Solved, settled
from overlap_recompute.planner.problem import StageProblem, StageSolution
from overlap_recompute.planner.solve import Memory, fast_workspace
from overlap_recompute.planner.stage_plan import stage_plan
from overlap_recompute.planner.waits import pace_of, waits_of
from overlap_recompute.planner.workspace import Choice, Workspace, assemble, price
from overlap_recompute.simulator import pass_times

TOLERANCE = 0.001
"""Of a stage's time: so much more exposed by need is no reason to look for another choice."""
TRIED = 12
"""Other choices of a stage that are filled by need: those that expose least by the estimate of `evaluate`."""


def suited(pipeline: Pipeline, solved: list[Solved], memory: Memory) -> list[Solved]:
    """The stages, with other choices where those expose less when windows are filled by need."""
    if pipeline.planner not in SEARCHING:
        return solved
    work = [pipeline.work_us(stage) for stage in range(len(solved))]
    times = [work_us + found.exposed_us for work_us, (_, found) in zip(work, solved, strict=True)]
    waits, (pace_us, _) = waits_of(times, pipeline.transfer_us), pace_of(times, pipeline.transfer_us)
    result = list(solved)
    for stage, (problem, found) in enumerate(solved):
        room = Room(pace_us=pace_us, work_us=work[stage], before_forward=waits[stage].before_forward)
        now_us = _by_need_us(pipeline, room, problem, found, found.exposed_us)
        if now_us <= found.exposed_us + TOLERANCE * times[stage]:
            continue
        is_slowest, least_us = times[stage] == pace_us, now_us - TOLERANCE * times[stage]
        other = _better(pipeline, room, problem, memory, is_slowest=is_slowest, least_us=least_us)
        if other is not None:
            result[stage] = problem, replace(other, bound_us=found.bound_us)
    return settled(result, work, pipeline.transfer_us)


def _better(
    pipeline: Pipeline, room: Room, problem: StageProblem, memory: Memory, *, is_slowest: bool, least_us: float
) -> StageSolution | None:
    """The choice that exposes least by need, if that is less than `least_us`."""
    workspace = fast_workspace(problem, memory)
    tried = []
    for choice, estimated_us in _promising(workspace):
        unfilled = assemble(workspace, choice, [])
        exposed_us = _by_need_us(pipeline, room, problem, unfilled, estimated_us)
        if exposed_us < least_us:
            tried.append((exposed_us, choice))
    for _, choice in sorted(tried):
        found = price(workspace, choice, EFFORT)
        if found is not None and (is_slowest or room.holds(problem, found)):
            return found
    return None


def _promising(workspace: Workspace) -> Iterator[tuple[Choice, float]]:
    """Choices that fit, with the estimate of what they expose; the lowest first."""
    choices = candidates(workspace)
    if not choices:
        return
    needed, exposed, _ = evaluate(workspace, np.array(choices, dtype=np.int64))
    order = [index for index in np.argsort(exposed, kind="stable") if needed[index] <= workspace.problem.budget_bytes]
    yield from ((choices[index], float(exposed[index])) for index in order[:TRIED])


def _by_need_us(
    pipeline: Pipeline, room: Room, problem: StageProblem, found: StageSolution, expected_us: float
) -> float:
    """What a microbatch of the steady state exposes, in a wait that leaves room for what is expected to be exposed."""
    plan = stage_plan(pipeline.profile, pipeline.split, problem, found, pipeline.budget_bytes)
    wait_us = room.wait(expected_us).length_us if len(pipeline.split) > 1 else 0.0
    return pass_times(pipeline.profile, pipeline.split, plan, wait_us=wait_us).exposed_us
