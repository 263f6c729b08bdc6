"""A stage's solution in the words of a plan."""

from overlap_recompute.plan.memory import MARGIN_FRACTION, stage_memory
from overlap_recompute.plan.plan_file import LayerPlan, PlannedFill, StagePlan, StagePrediction
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import Split
from overlap_recompute.plan.storages import brought_back_bytes_of
from overlap_recompute.planner.pipeline import work_us
from overlap_recompute.planner.problem import StageProblem, StageSolution


def stage_plan(
    profile: Profile, split: Split, problem: StageProblem, solution: StageSolution, budget_bytes: int
) -> StagePlan:
    """A solution in the words of a plan; memory that it leaves may be used to recompute further ahead."""
    dropped = {layer.layer: names for layer, names in zip(problem.layers, solution.dropped, strict=True)}
    forward_us, backward_us = work_us(profile, split, problem.stage)
    in_flight = tuple(chunk.in_flight for chunk in problem.chunks)
    kinds = [problem.kinds[layer.kind] for layer in problem.layers]
    cap_bytes = solution.prefetched_bytes
    memory = stage_memory(profile, split, problem.stage, dropped, in_flight, prefetch_cap_bytes=cap_bytes)
    if problem.window_kinds:
        cap_bytes += _spare_bytes(problem, solution, budget_bytes - memory.total_bytes)
        memory = stage_memory(profile, split, problem.stage, dropped, in_flight, prefetch_cap_bytes=cap_bytes)
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

    Waits of the warm-up, of the cool-down and of chunks are not planned; with a higher cap they hide what the plan
    leaves exposed.
    """
    kinds = [problem.kinds[layer.kind] for layer in problem.layers]
    useful_bytes = sum(
        brought_back_bytes_of(kind.storages, names) for kind, names in zip(kinds, solution.dropped, strict=True)
    )
    spare_bytes = int(left_bytes / (1 + MARGIN_FRACTION)) - 1
    return max(0, min(spare_bytes, useful_bytes - solution.prefetched_bytes))
