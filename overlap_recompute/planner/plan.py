"""`make_plan`: from a profile and a memory budget to a plan."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace

from overlap_recompute.plan.memory import MARGIN_FRACTION, stage_memory
from overlap_recompute.plan.plan_file import (
    PLAN_VERSION,
    LayerPlan,
    Plan,
    PlannedFill,
    StagePlan,
    StagePrediction,
)
from overlap_recompute.plan.profile import EndCost, Layout, Pass, Profile
from overlap_recompute.plan.split import Split, layers_of
from overlap_recompute.plan.storages import brought_back_bytes_of
from overlap_recompute.planner.baselines import COMMON
from overlap_recompute.planner.build import build_stage_problem
from overlap_recompute.planner.infeasible import InfeasibleError, with_advice
from overlap_recompute.planner.opt import GAP
from overlap_recompute.planner.problem import StageProblem, StageSolution
from overlap_recompute.planner.progress import Report
from overlap_recompute.planner.solve import (
    Memory,
    Search,
    check_planner,
    least_bytes,
    solve_common,
    solve_stage,
    window_kinds_of,
)
from overlap_recompute.schedules import pipeline_schedule
from overlap_recompute.simulator import simulate


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
    problems = stage_problems(profile, split, microbatches, budget_bytes, planner)
    search = Search(limit_s=time_limit_s / len(split), gap=gap, report=progress)
    try:
        solved = _solve(profile, problems, planner, memory, search, layout, budget_bytes)
    except InfeasibleError as error:
        problem = problems[error.stage]
        raise with_advice(error, profile, split, least_bytes(problem, memory)) from None
    plan = Plan(
        version=PLAN_VERSION,
        planner=planner,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        model_fingerprint=profile.model_fingerprint,
        layout=layout,
        software=profile.origin.software,
        budget_bytes=budget_bytes,
        predicted_iteration_us=0.0,
        stages=tuple(stage_plan(profile, layout, problem, solution, budget_bytes) for problem, solution in solved),
    )
    return replace(plan, predicted_iteration_us=simulate(profile, plan).iteration_us)


def stage_problems(
    profile: Profile,
    split: Split,
    microbatches: int,
    budget_bytes: int,
    planner: str,
    waits_us: Mapping[int, float] | None = None,
) -> list[StageProblem]:
    """The problems of all stages, with the windows that a planner fills.

    Args:
        profile: costs and sizes.
        split: layers over stages and chunks.
        microbatches: of an iteration.
        budget_bytes: memory of one rank.
        planner: whose windows.
        waits_us: by stage the wait for the next one's gradient; 0 for stages that are missing.
    """
    grid = pipeline_schedule(len(split), len(split[0]), microbatches)
    return [
        build_stage_problem(
            profile,
            split,
            stage,
            microbatches,
            budget_bytes,
            pp_wait_us=(waits_us or {}).get(stage, 0.0),
            window_kinds=window_kinds_of(planner),
            row=row,
        )
        for stage, row in enumerate(grid)
    ]


def _solve(
    profile: Profile,
    problems: Sequence[StageProblem],
    planner: str,
    memory: Memory,
    search: Search,
    layout: Layout,
    budget_bytes: int,
) -> list[tuple[StageProblem, StageSolution]]:
    if planner in COMMON:
        return list(zip(problems, solve_common(problems, planner, memory), strict=True))
    solutions = [solve_stage(problem, planner, memory=memory, search=search) for problem in problems]
    if planner != "early":
        return list(zip(problems, solutions, strict=True))
    waits_us = steady_waits_us(profile, layout.split, solutions)
    waiting = stage_problems(profile, layout.split, layout.microbatches, budget_bytes, planner, waits_us)
    return [(problem, solve_stage(problem, planner, memory=memory, search=search)) for problem in waiting]


def steady_waits_us(profile: Profile, split: Split, solutions: Sequence[StageSolution]) -> dict[int, float]:
    """How long each stage waits for the slowest one, per microbatch, in the steady state."""
    times_us = [sum(work_us(profile, split, stage)) + solution.exposed_us for stage, solution in enumerate(solutions)]
    return {stage: max(times_us) - time_us for stage, time_us in enumerate(times_us)}


def work_us(profile: Profile, split: Split, stage: int) -> tuple[float, float]:
    """Forward and backward time of a microbatch on a stage, windows included, nothing recomputed."""
    kinds = [profile.kind_of(layer) for layers in layers_of(split)[stage] for layer in layers]
    parts: list[tuple[Pass, Pass]] = [(kind.forward, kind.backward) for kind in kinds]
    ends: tuple[EndCost, ...] = (profile.embedding,) * (stage == 0) + (profile.head,) * (stage == len(split) - 1)
    parts += [(end.forward, end.backward) for end in ends]
    return (
        sum(step.duration_us for forward, _ in parts for step in forward),
        sum(step.duration_us for _, backward in parts for step in backward),
    )


def stage_plan(
    profile: Profile, layout: Layout, problem: StageProblem, solution: StageSolution, budget_bytes: int
) -> StagePlan:
    """A solution in the words of a plan; memory that it leaves may be used to recompute further ahead."""
    dropped = {layer.layer: names for layer, names in zip(problem.layers, solution.dropped, strict=True)}
    forward_us, backward_us = work_us(profile, layout.split, problem.stage)
    in_flight = tuple(chunk.in_flight for chunk in problem.chunks)
    kinds = [problem.kinds[layer.kind] for layer in problem.layers]
    cap_bytes = solution.prefetched_bytes
    memory = stage_memory(profile, layout.split, problem.stage, dropped, in_flight, prefetch_cap_bytes=cap_bytes)
    if problem.window_kinds:
        cap_bytes += _spare_bytes(problem, solution, budget_bytes - memory.total_bytes)
        memory = stage_memory(profile, layout.split, problem.stage, dropped, in_flight, prefetch_cap_bytes=cap_bytes)
    return StagePlan(
        stage=problem.stage,
        layers=tuple(
            LayerPlan(
                layer=layer.layer,
                chunk=layer.chunk,
                dropped=tuple(unit.name for unit in kind.units if unit.name in dropped[layer.layer]),
            )
            for layer, kind in zip(problem.layers, kinds, strict=True)
        ),
        window_kinds=problem.window_kinds,
        prefetch_cap_bytes=cap_bytes,
        fills=tuple(
            PlannedFill(
                layer=problem.layers[fill.layer].layer,
                unit=kinds[fill.layer].units[fill.unit].name,
                window=problem.windows[fill.window].name,
            )
            for fill in sorted(solution.fills, key=lambda fill: (fill.window, -fill.layer, fill.unit))
        ),
        predicted=StagePrediction(
            forward_us=forward_us,
            backward_us=backward_us,
            recompute_us=solution.hidden_us + solution.exposed_us,
            exposed_us=solution.exposed_us,
            in_flight=in_flight,
            memory=memory,
        ),
    )


def _spare_bytes(problem: StageProblem, solution: StageSolution, left_bytes: int) -> int:
    """What the cap may be raised by: no more than is left, and than a microbatch can bring back.

    Waits for other stages are not planned; with a higher cap they hide what the plan leaves exposed.
    """
    kinds = [problem.kinds[layer.kind] for layer in problem.layers]
    useful_bytes = sum(
        brought_back_bytes_of(kind.storages, names) for kind, names in zip(kinds, solution.dropped, strict=True)
    )
    spare_bytes = int(left_bytes / (1 + MARGIN_FRACTION)) - 1
    return max(0, min(spare_bytes, useful_bytes - solution.prefetched_bytes))
