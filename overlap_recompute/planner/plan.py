"""`make_plan`: from a profile and a memory budget to a plan."""

import datetime
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from overlap_recompute.plan.plan_file import PLAN_VERSION, Plan, StagePlan
from overlap_recompute.plan.profile import Layout, Profile
from overlap_recompute.plan.split import Split
from overlap_recompute.planner.anneal import moves_of
from overlap_recompute.planner.by_need import suited
from overlap_recompute.planner.highs import SolverProcess
from overlap_recompute.planner.infeasible import InfeasibleError, with_advice
from overlap_recompute.planner.opt import GAP, Leftover
from overlap_recompute.planner.pipeline import Pipeline, Solved, solve_pipeline
from overlap_recompute.planner.progress import Report, gap_of
from overlap_recompute.planner.refine import LIMIT_S
from overlap_recompute.planner.seen_waits import searches_of, with_seen_waits
from overlap_recompute.planner.solve import Memory, Search, check_planner, least_bytes
from overlap_recompute.planner.spare import spared
from overlap_recompute.planner.stage_plan import stage_plan
from overlap_recompute.simulator import simulate

_ROUNDING = 1e-9
INTERRUPTIBLE = "opt"
"""The planner that Ctrl-C ends with the best plan so far; its plan says in a note what it has proven."""


def make_plan(
    profile: Profile,
    planner: str = "heu",
    budget_bytes: int = 0,
    *,
    split: Split | None = None,
    microbatches: int | None = None,
    progress: Report | None = None,
    time_limit_s: float = 60.0,
    gap: float = GAP,
    memory: Memory | None = None,
    by_need: bool = True,
) -> Plan:
    """Plan all stages.

    Args:
        profile: costs and sizes.
        planner: one of `PLANNERS` (docs/planner.md).
        budget_bytes: memory of one rank, all of it.
        split: layers over stages and chunks; None: the profile's.
        microbatches: of an iteration; None: the profile's.
        progress: told how opt's search goes.
        time_limit_s: for opt's search, all stages together.
        gap: relative gap at which opt stops.
        memory: of earlier calls, see `overlap_recompute.planner.solve.Memory`.
        by_need: look for choices that suit filling by need as well (`suited`), which takes most of the time; without
            that, as where many splits are compared, nothing is annealed either.

    The first Ctrl-C while `opt` is at work ends its search, and the plan is made of the best solutions so far.

    Raises:
        InfeasibleError: nothing fits: by how many bytes, on which stage, and what would help.
        SolverError: opt or checkmate without SciPy, or out of time before there was any solution.
        ConfigError: no such planner, or no schedule for these sizes.
    """
    check_planner(planner)
    split = split or profile.layout.split
    microbatches = microbatches or profile.layout.microbatches
    layout = replace(profile.layout, split=split, microbatches=microbatches, pipeline_parallel=len(split))
    memory = memory or Memory()
    pipeline = Pipeline(profile, split, microbatches, budget_bytes, planner)
    stop = threading.Event() if planner == INTERRUPTIBLE else None
    try:
        with SolverProcess() as solver:
            search = Search(
                limit_s=time_limit_s / (len(split) * searches_of(split)), gap=gap, report=progress, solver=solver,
                stop=stop, moves=moves_of(len(split)) if by_need else 0, leftover=Leftover(),
                last_look_s=0.0 if planner == "heu" else LIMIT_S,
            )  # fmt: skip
            ways = solve_pipeline(pipeline, memory, search)
            made = partial(_simulated, pipeline, layout, stop)
            if not by_need:
                return made(ways[0])
            return _fastest(pipeline, ways, memory, search, made)
    except InfeasibleError as error:
        raise with_advice(error, profile, split, least_bytes(pipeline.problem(error.stage), memory)) from None


def _fastest(
    pipeline: Pipeline,
    ways: Sequence[list[Solved]],
    memory: Memory,
    search: Search,
    made: Callable[[list[Solved]], Plan],
) -> Plan:
    """Of all ways, with choices that suit filling by need, and with no more replays than memory asks for."""
    pairs = [(made(way), way) for way in (suited(pipeline, way, memory) for way in ways)]
    best = min(pairs, key=lambda pair: pair[0].predicted_iteration_us)
    fewer = spared(pipeline, best[1])
    if fewer is not best[1]:
        plan = made(fewer)
        if plan.predicted_iteration_us <= best[0].predicted_iteration_us * (1 + _ROUNDING):
            best = plan, fewer
    return with_seen_waits(best, pipeline, memory, search, made)


def _simulated(pipeline: Pipeline, layout: Layout, stop: threading.Event | None, solved: Sequence[Solved]) -> Plan:
    plan = Plan(
        version=PLAN_VERSION,
        planner=pipeline.planner,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        model_fingerprint=pipeline.profile.model_fingerprint,
        layout=layout,
        software=pipeline.profile.origin.software,
        budget_bytes=pipeline.budget_bytes,
        predicted_iteration_us=0.0,
        stages=tuple(_stages(pipeline, solved)),
        note="" if stop is None else _note(pipeline, solved, interrupted=stop.is_set()),
    )
    return replace(plan, predicted_iteration_us=simulate(pipeline.profile, plan).iteration_us)


def _stages(pipeline: Pipeline, solved: Sequence[Solved]) -> Iterator[StagePlan]:
    for problem, solution in solved:
        yield stage_plan(pipeline.profile, pipeline.split, problem, solution, pipeline.budget_bytes)


def _note(pipeline: Pipeline, solved: Sequence[Solved], *, interrupted: bool) -> str:
    """What opt has proven of the stage where that is least."""
    gaps = [gap_of(found.exposed_us, found.bound_us) for _, found in solved]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    found = solved[worst][1]
    stage_us = pipeline.work_us(worst) + found.exposed_us
    share = (found.exposed_us - found.bound_us) / stage_us if stage_us else 0.0
    return (
        f"{'search interrupted; ' if interrupted else ''}proven: no stage could expose less by more than "
        f"{gaps[worst]:.1%} (stage {worst}, {share:.2%} of its time for a microbatch)"
    )
