"""Waits for other pipeline stages as windows: planned, used, and as long as in the simulation."""

import dataclasses
import itertools

import pytest

from overlap_recompute.plan.profile import COMPUTE, EndCost, LayerKind, LinkFit, PassStep, Profile
from overlap_recompute.plan.split import Split
from overlap_recompute.planner import make_plan
from overlap_recompute.planner.pipeline import Pipeline, solve_apart
from overlap_recompute.planner.solve import Memory, Search
from overlap_recompute.planner.stage_plan import stage_plan
from overlap_recompute.planner.verify import find_plan_faults
from overlap_recompute.planner.waits import pace_of, waits_of
from overlap_recompute.simulator import simulate
from tests.unit.planner.profiles import profile_of, transformer_kind

MICROBATCHES = 64


def without_windows(kind: LayerKind) -> LayerKind:
    """The layer on one rank: nothing to exchange, nothing to wait for."""

    def computed(steps: tuple[PassStep, ...]) -> tuple[PassStep, ...]:
        return tuple(step for step in steps if step.kind == COMPUTE)

    return dataclasses.replace(kind, forward=computed(kind.forward), backward=computed(kind.backward))


def pipeline_profile(split: Split, slow: str, *, tensor_parallel: bool = False, slow_us: float = 4000.0) -> Profile:
    """Stages of equal layers, and `slow`: an end that makes the stage it is on the slowest."""
    kind = transformer_kind(link_gb_per_s=60.0)
    kind = kind if tensor_parallel else without_windows(kind)
    profile = profile_of((kind,), (0,) * sum(map(sum, split)), split, MICROBATCHES, end_bytes=1 << 20)

    def end(old: EndCost) -> EndCost:
        steps = [(PassStep(kind=COMPUTE, name="end", duration_us=share * slow_us),) for share in (1, 2)]
        return dataclasses.replace(old, forward=steps[0], backward=steps[1])

    if slow == "head":
        return dataclasses.replace(profile, head=end(profile.head))
    return dataclasses.replace(profile, embedding=end(profile.embedding))


def budget_between(profile: Profile, share: float) -> int:
    """So far on the way from what `full` needs to what `none` needs."""
    least, most = (
        max(stage.predicted.memory.total_bytes for stage in make_plan(profile, name, 1 << 50).stages)
        for name in ("full", "none")
    )
    return int(least + share * (most - least))


@pytest.mark.parametrize("planner", ["heu", "mix", "opt"])
def test_a_long_wait_and_no_tensor_parallelism(planner: str) -> None:
    """Blind to waits everything is exposed; with them nothing is, and the simulator says the same."""
    profile = pipeline_profile(((3,), (3,)), "head")
    budget_bytes = budget_between(profile, 0.6)
    pipeline = Pipeline(profile, profile.layout.split, MICROBATCHES, budget_bytes, planner)
    blind = solve_apart(pipeline, planner, Memory(), Search(limit_s=30.0))
    assert blind[0][1].exposed_us > 100
    plan = make_plan(profile, planner, budget_bytes, time_limit_s=60.0)
    stage = plan.stages[0]
    assert stage.predicted.exposed_us == 0 and stage.predicted.recompute_us >= blind[0][1].exposed_us
    assert {fill.window for fill in stage.fills} == {"P"}
    assert not find_plan_faults(profile, plan)
    simulated = simulate(profile, plan)
    used = {use.kind: use for use in simulated.stages[0].windows}["pp_wait"]
    assert used.filled_us == pytest.approx(simulated.stages[0].hidden_us) and used.filled_us > 0
    assert simulated.stages[0].exposed_us == 0


def test_behind_the_slowest_stage_the_wait_comes_before_the_forward_pass() -> None:
    profile = pipeline_profile(((3,),) * 4, "embedding")
    plan = make_plan(profile, "mix", budget_between(profile, 0.6))
    assert {fill.window for fill in plan.stages[1].fills} == {"PF"} and plan.stages[1].predicted.exposed_us == 0
    assert not plan.stages[3].fills  # it has nothing to replay while it waits
    assert not find_plan_faults(profile, plan)
    # The first microbatch's backward pass comes when there has been no wait yet.
    assert simulate(profile, plan).stages[1].exposed_us <= plan.stages[1].predicted.recompute_us * 1.001


@pytest.mark.parametrize("tensor_parallel", [False, True])
@pytest.mark.parametrize("slow", ["head", "embedding"])
@pytest.mark.parametrize("split", [((3,), (3,)), ((3,),) * 4, ((2,), (5,), (3,), (2,))])
def test_the_simulated_pace_is_the_predicted_one(split: Split, slow: str, tensor_parallel: bool) -> None:
    """For PP = 2 and PP = 4 and three budgets: the slowest stage's predicted time within 1.5 % of the simulated period,
    and exposed recompute of each stage within 3 % of it."""
    profile = pipeline_profile(split, slow, tensor_parallel=tensor_parallel)
    for share in (0.1, 0.3, 0.6):
        plan = make_plan(profile, "mix", budget_between(profile, share))
        assert not find_plan_faults(profile, plan)
        simulated = simulate(profile, plan)
        predicted = [stage.predicted for stage in plan.stages]
        slowest_us = max(each.forward_us + each.backward_us + each.exposed_us for each in predicted)
        assert simulated.period_us == pytest.approx(slowest_us, rel=0.015), share
        for stage, each in zip(simulated.stages, predicted, strict=True):
            exposed_us = stage.exposed_us / MICROBATCHES
            assert exposed_us == pytest.approx(each.exposed_us, abs=0.03 * simulated.period_us), share


def test_planned_waits_make_no_iteration_slower() -> None:
    """Beside the plan of the same planner that knows of no wait."""
    for split, share in itertools.product([((3,), (3,)), ((3,),) * 4], (0.1, 0.3, 0.6)):
        profile = pipeline_profile(split, "head")
        budget_bytes = budget_between(profile, share)
        pipeline = Pipeline(profile, split, MICROBATCHES, budget_bytes, "mix")
        plan = make_plan(profile, "mix", budget_bytes)
        blind = tuple(
            stage_plan(profile, split, problem, found, budget_bytes)
            for problem, found in solve_apart(pipeline, "mix", Memory(), Search())
        )
        blind_us = simulate(profile, dataclasses.replace(plan, stages=blind)).iteration_us
        assert plan.predicted_iteration_us <= blind_us * (1 + 1e-3)


def test_early_hides_in_the_waits_of_fast_stages() -> None:
    profile = pipeline_profile(((3,), (3,)), "head", tensor_parallel=True)
    plan = make_plan(profile, "early", budget_between(profile, 0.4))
    assert plan.stages[0].fills and all(fill.window == "P" for fill in plan.stages[0].fills)
    assert all(stage.window_kinds == ("pp_wait",) for stage in plan.stages)
    assert not find_plan_faults(profile, plan)


def test_the_slowest_stage_does_not_wait() -> None:
    waits = waits_of([3.0, 5.0, 5.0, 4.0])
    assert [wait.length_us for wait in waits] == [2.0, 0.0, 0.0, 1.0]
    assert [wait.before_forward for wait in waits] == [False, False, True, True]


def test_a_round_trip_may_be_slower_than_any_stage() -> None:
    """Two microbatches on their way: each needs both stages and two transfers."""
    assert pace_of([3.0, 4.0], 0.4) == (4.0, 1)
    assert pace_of([3.0, 4.0], 2.5) == (6.0, 0)
    assert [wait.length_us for wait in waits_of([3.0, 4.0], 2.5)] == [3.0, 2.0]
    assert [wait.before_forward for wait in waits_of([3.0, 4.0], 2.5)] == [False, True]
    assert pace_of([1.0, 5.0, 5.0], 2.0) == (7.0, 1), "stages 1 and 2, and two transfers, for two microbatches"


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_the_waits_of_a_round_trip_are_used(share: float) -> None:
    """Equal stages wait for nobody but the link; a plan that knows hides what one that does not exposes."""
    profile = pipeline_profile(((3,), (3,)), "head", slow_us=1.0)
    work_us = sum(step.duration_us for step in (*profile.kinds[0].forward, *profile.kinds[0].backward)) * 3
    send = LinkFit(name="send", alpha_us=0.4 * work_us, beta_us_per_byte=0.0)
    slow = dataclasses.replace(profile, links=(send,))
    budget_bytes = budget_between(slow, share)
    plan = make_plan(slow, "mix", budget_bytes)
    pipeline = Pipeline(slow, slow.layout.split, MICROBATCHES, budget_bytes, "mix")
    blind = solve_apart(pipeline, "mix", Memory(), Search())
    assert plan.stages[0].predicted.exposed_us < blind[0][1].exposed_us
    assert not find_plan_faults(slow, plan)
    simulated = simulate(slow, plan)
    exposed_us = simulated.stages[0].exposed_us / MICROBATCHES
    assert exposed_us == pytest.approx(plan.stages[0].predicted.exposed_us, abs=0.03 * simulated.period_us)
