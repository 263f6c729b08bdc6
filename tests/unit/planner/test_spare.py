"""Where memory is left, units are kept that windows would hide: nothing is recomputed that need not be."""

import dataclasses

import pytest

from overlap_recompute.plan.memory import stage_memory
from overlap_recompute.plan.plan_file import Plan, StagePlan
from overlap_recompute.plan.profile import LayerKind, Profile
from overlap_recompute.planner import make_plan
from overlap_recompute.planner import plan as planning
from overlap_recompute.planner.pipeline import Pipeline, Solved
from overlap_recompute.planner.verify import find_plan_faults
from tests.unit.planner.test_plans import SPLITS, gpt, needed_bytes
from tests.unit.planner.test_waits import budget_between


def _recompute_us(plan: Plan) -> float:
    return sum(stage.predicted.recompute_us for stage in plan.stages)


def _bytes_with(profile: Profile, plan: Plan, stage: StagePlan, whole: int) -> int:
    """Of a stage that keeps all units of one more layer."""
    dropped = {entry.layer: frozenset(entry.dropped) for entry in stage.layers if entry.layer != whole}
    return stage_memory(
        profile, plan.layout.split, stage.stage, dropped, stage.predicted.in_flight,
        prefetch_cap_bytes=stage.prefetch_cap_bytes,
    ).total_bytes  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("planner", ["heu", "mix"])
def test_no_layer_is_recomputed_that_could_be_kept(planner: str, split: tuple[tuple[int, ...], ...]) -> None:
    profile = gpt(split)
    most, least = needed_bytes(profile, "none"), needed_bytes(profile, "full")
    for budget_bytes in (most, (3 * most + least) // 4, (most + least) // 2):
        plan = make_plan(profile, planner, budget_bytes)
        assert not find_plan_faults(profile, plan)
        for stage in plan.stages:
            for entry in stage.layers:
                assert not entry.dropped or _bytes_with(profile, plan, stage, entry.layer) > budget_bytes


def test_fewer_replays_take_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = gpt(SPLITS[0])
    profile = dataclasses.replace(profile, kinds=tuple(_with_long_windows(kind) for kind in profile.kinds))
    budget_bytes = budget_between(profile, 0.8)
    few = make_plan(profile, "mix", budget_bytes)

    def as_they_are(pipeline: Pipeline, solved: list[Solved]) -> list[Solved]:
        return solved

    monkeypatch.setattr(planning, "spared", as_they_are)
    many = make_plan(profile, "mix", budget_bytes)
    assert _recompute_us(few) < 0.5 * _recompute_us(many)
    assert few.predicted_iteration_us <= many.predicted_iteration_us * (1 + 1e-9)


def _with_long_windows(kind: LayerKind) -> LayerKind:
    steps = tuple(
        step if step.kind == "compute" else dataclasses.replace(step, duration_us=10_000.0) for step in kind.backward
    )
    return dataclasses.replace(kind, backward=steps)
