"""Whole plans: every planner, several splits and budgets; errors; and that the verifier sees faults."""

import copy
import dataclasses
import sys

import pytest

from overlap_recompute.plan.errors import ConfigError, UserError
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import Split
from overlap_recompute.plan.validation import check_plan, check_plan_fits
from overlap_recompute.planner import PLANNERS, InfeasibleError, Progress, make_plan, solve_stage
from overlap_recompute.planner.pipeline import Pipeline
from overlap_recompute.planner.problem import Fill
from overlap_recompute.planner.solve import Memory, Search, least_bytes
from overlap_recompute.planner.verify import find_faults, find_plan_faults
from tests.unit.planner.instances import random_problem
from tests.unit.planner.profiles import profile_of, transformer_kind

SPLITS: tuple[Split, ...] = (((3,), (3,)), ((1, 2), (2, 1)), ((0,), (6,)), ((6,),))


def gpt(split: Split, *, llama: bool = False) -> Profile:
    return profile_of((transformer_kind(llama=llama, link_gb_per_s=40.0),), (0,) * 6, split, 8, end_bytes=1 << 20)


def needed_bytes(profile: Profile, planner: str) -> int:
    plan = make_plan(profile, planner, 1 << 50)
    return max(stage.predicted.memory.total_bytes for stage in plan.stages)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("planner", PLANNERS)
def test_every_plan_keeps_to_budget_and_order(planner: str, split: Split) -> None:
    profile = gpt(split, llama=planner in ("heu", "mix"))
    most, least = needed_bytes(profile, "none"), needed_bytes(profile, "full")
    for budget_bytes in (most, (most + 3 * least) // 4):
        try:
            plan = make_plan(profile, planner, budget_bytes, time_limit_s=0.4)
        except InfeasibleError:
            assert planner in ("none", "full", "selective") or split == ((0,), (6,))
            continue
        check_plan(plan, "plan")
        check_plan_fits(plan, profile, "plan")
        assert all(stage.predicted.memory.total_bytes <= budget_bytes for stage in plan.stages)
        assert plan.predicted_iteration_us > 0
        assert not find_plan_faults(profile, plan)


def test_with_all_the_memory_there_is_nothing_is_dropped() -> None:
    profile = gpt(SPLITS[0])
    for planner in set(PLANNERS) - {"full", "opt"}:
        plan = make_plan(profile, planner, 1 << 50)
        assert not any(entry.dropped for stage in plan.stages for entry in stage.layers), planner


def test_windows_help_where_memory_is_short() -> None:
    profile = gpt(SPLITS[0])
    most, least = needed_bytes(profile, "none"), needed_bytes(profile, "full")
    times_us = {
        planner: make_plan(profile, planner, (2 * most + 3 * least) // 5).predicted_iteration_us
        for planner in ("mix", "heu", "adapipe", "block", "full")
    }
    assert times_us["mix"] <= times_us["heu"] * 1.01
    assert times_us["heu"] < times_us["adapipe"] <= times_us["block"] <= times_us["full"]


def test_infeasible_names_the_worst_stage_and_exactly_what_it_lacks() -> None:
    """Budget plus the bytes named fits; every stage that is counted is short, and none by more."""
    profile = gpt(((1,), (4,), (1,)))
    problems = Pipeline(profile, profile.layout.split, 8, 0, "mix").problems()
    needs = [least_bytes(problem, Memory()) - problem.budget_bytes for problem in problems]
    assert needs[1] == max(needs) != needs[0]
    least = max(stage.predicted.memory.total_bytes for stage in make_plan(profile, "full", 1 << 50).stages)
    with pytest.raises(InfeasibleError, match="stage 1 .* 2 further stages") as caught:
        make_plan(profile, "mix", least // 4)
    error = caught.value
    assert error.stage == 1 and error.further_stages == 2 and str(error.short_bytes) in str(error)
    assert "--sequence-parallel" in error.next_step
    assert make_plan_or_none(profile, "mix", least // 4 + error.short_bytes) is not None
    assert make_plan_or_none(profile, "mix", least // 4 + error.short_bytes - 10) is None
    assert str(copy.copy(error)) == str(error)  # as it is when it crosses a process


@pytest.mark.parametrize("planner", ["full", "block", "adapipe"])
def test_baselines_name_the_worst_stage_too(planner: str) -> None:
    profile = gpt(((2,), (1,), (3,)))
    with pytest.raises(InfeasibleError) as caught:
        make_plan(profile, planner, 1000)
    problems = Pipeline(profile, profile.layout.split, 8, 1000, planner).problems()
    short = [least_bytes(problem, Memory()) - problem.budget_bytes for problem in problems]
    assert caught.value.stage == short.index(max(short)) and caught.value.further_stages == 2


def make_plan_or_none(profile: Profile, planner: str, budget_bytes: int) -> Plan | None:
    try:
        return make_plan(profile, planner, budget_bytes)
    except InfeasibleError:
        return None


def test_an_unknown_planner_is_refused() -> None:
    with pytest.raises(ConfigError, match="heu"):
        make_plan(gpt(SPLITS[0]), "best", 1 << 50)


def test_opt_without_scipy_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    problem = next(p for p in map(random_problem, range(100)) if _exposes(p))
    with pytest.raises(UserError, match="--planner mix"):
        solve_stage(problem, "opt", search=Search(gap=0.0))


def _exposes(problem: object) -> bool:
    try:
        return solve_stage(problem, "mix").exposed_us > 0  # type: ignore[arg-type]
    except InfeasibleError:
        return False


def test_opt_reports_progress() -> None:
    seen: list[Progress] = []
    problem = next(p for p in map(random_problem, range(100)) if _exposes(p))
    found = solve_stage(problem, "opt", search=Search(gap=0.0, report=seen.append))
    assert seen and seen[0].exposed_us >= found.exposed_us
    assert "gap" in str(seen[0])


def test_the_verifier_sees_what_is_wrong() -> None:
    problem = next(p for p in map(random_problem, range(200)) if _has_fills(p))
    found = solve_stage(problem, "mix", memory=Memory())
    fill = found.fills[0]
    late = problem.layers[fill.layer].deadlines[fill.unit]
    wrong = [
        dataclasses.replace(found, exposed_us=found.exposed_us + 1),
        dataclasses.replace(found, kept_bytes=found.kept_bytes - 1),
        dataclasses.replace(found, prefetched_bytes=0),
        dataclasses.replace(found, fills=(*found.fills, fill)),
        dataclasses.replace(found, dropped=found.dropped[:-1]),
        dataclasses.replace(found, bound_us=found.exposed_us + 1),
        dataclasses.replace(found, dropped=(frozenset(),) * len(found.dropped)),
    ]
    if late < len(problem.windows):
        moved = Fill(layer=fill.layer, unit=fill.unit, window=late)
        wrong.append(dataclasses.replace(found, fills=(moved, *found.fills[1:])))
    assert not find_faults(problem, found)
    assert all(find_faults(problem, solution) for solution in wrong)
    small = dataclasses.replace(problem, budget_bytes=found.total_bytes - 1)
    assert find_faults(small, found)


def _has_fills(problem: object) -> bool:
    try:
        return bool(solve_stage(problem, "mix").fills)  # type: ignore[arg-type]
    except InfeasibleError:
        return False
