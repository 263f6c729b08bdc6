"""Which plan a run follows after each measurement, and what the log says."""

import json
import logging
import pathlib
from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron.overlap.measuring.drift import drifts
from megatron.pretrain.training import auto_plan
from megatron.pretrain.training.auto_plan import AutoPlanner, budget_gib_of
from megatron.pretrain.training.plan_changes import changes_in_words
from megatron.pretrain.training.planner_process import PlannerError, plan_for, predicted_us
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.plan_file import Plan, PlannedFill
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import layout_text
from overlap_recompute.plan.validation import read_plan
from tests.unit.plan.samples import sample_plan, sample_profile

CPU = torch.device("cpu")
PROFILE = sample_profile(((4,),))
PLAN = sample_plan(PROFILE)
GIB = 1 << 30


def options(rank: int = 0, memory_gib: float | None = 1.0, kept: pathlib.Path | None = None) -> Any:
    """Of a run, as far as planning asks."""
    file = None if kept is None else str(kept)
    return SimpleNamespace(
        world=SimpleNamespace(rank=rank),
        overlap=SimpleNamespace(overlap_recompute_memory_gib=memory_gib, overlap_recompute_auto_plan=file),
    )


def planner(rank: int = 0, answer: bytes | None = None, kept: pathlib.Path | None = None) -> AutoPlanner:
    """Of a rank; `answer`: what rank 0 gave; `kept`: where plans are left."""
    return AutoPlanner(
        options(rank, kept=kept), CPU, share=lambda mine, device: [mine if answer is None else answer], drifts=drifts
    )


def dropping(plan: Plan, units: tuple[str, ...], iteration_us: float) -> Plan:
    """The plan with other units in layers 1 and 2."""
    stages = tuple(
        replace(
            stage,
            fills=(),
            layers=tuple(replace(e, dropped=units) if e.layer in (1, 2) else e for e in stage.layers),
        )
        for stage in plan.stages
    )
    return replace(plan, stages=stages, predicted_iteration_us=iteration_us)


def with_windows(profile: Profile, us: float) -> Profile:
    """Backward windows of this length."""
    (kind,) = profile.kinds
    *computed, window = kind.backward
    return replace(profile, kinds=(replace(kind, backward=(*computed, replace(window, duration_us=us))),))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the planner says, in order, and what the simulator says of the present plan."""

    def script(*plans: Plan | PlannerError, present_us: float = 6000.0) -> None:
        left = list(plans)

        def answer(*args: object, **limits: object) -> Plan:
            found = left.pop(0)
            if isinstance(found, PlannerError):
                raise found
            return found

        monkeypatch.setattr(auto_plan, "plan_for", answer)
        monkeypatch.setattr(auto_plan, "predicted_us", lambda *args, **limits: present_us)

    return script


@pytest.mark.parametrize(
    ("iteration_us", "window_us", "words"),
    [
        (5990.0, 60.0, "measured anew, the plan is kept: layers 1-2: -fc; predicted iteration 6.00 -> 5.99 ms (-0.2%)"),
        (5900.0, 60.0, "measured anew, another plan is taken: layers 1-2: -fc; predicted iteration 6.00 -> 5.90 ms"),
        (6100.0, 90.0, "predicted iteration 6.00 -> 6.10 ms (+1.7%); windows tp_backward 60 -> 90 us"),
    ],
)
def test_a_plan_is_changed_for_a_gain_or_because_windows_changed(
    iteration_us: float, window_us: float, words: str, answers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = replace(PLAN, stages=tuple(replace(stage, fills=()) for stage in PLAN.stages))
    other = dropping(PLAN, ("act",), iteration_us)
    answers(first, other)
    run = planner()
    assert run.plan(PROFILE) == first
    assert run.plan(with_windows(PROFILE, window_us)) == (first if "kept" in words else other)
    assert words in caplog.text
    assert run.asked == 2


def test_windows_are_compared_with_those_that_the_plan_was_made_from(answers: Any) -> None:
    second, third = dropping(PLAN, ("act",), 6000.0), dropping(PLAN, (), 6000.0)
    answers(PLAN, second, third)
    run = planner()
    run.plan(PROFILE)
    assert run.plan(with_windows(PROFILE, 70.0)) == PLAN
    assert run.plan(with_windows(PROFILE, 80.0)) == third, "little by little they have changed by a third"


def test_without_an_answer_the_run_ends_at_first_and_goes_on_later(
    answers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answers(PlannerError("nothing fits"), PLAN, PlannerError("too slow"))
    with pytest.raises(ConfigError, match=r"--overlap-recompute-auto without a plan \(nothing fits\)"):
        planner().plan(PROFILE)
    run = planner()
    assert run.plan(PROFILE) == run.plan(PROFILE) == PLAN
    assert "measured anew, the plan is kept: too slow" in caplog.text


def test_the_plan_that_is_taken_is_kept_and_training_goes_on_where_it_cannot_be(
    answers: Any, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    second = dropping(PLAN, ("act",), 5000.0)
    answers(PLAN, dropping(PLAN, (), 6100.0), second)
    kept = tmp_path / "plan.json"
    run = planner(kept=kept)
    run.plan(PROFILE)
    assert read_plan(kept) == run.plan(PROFILE) == PLAN
    run.plan(PROFILE)
    assert read_plan(kept) == second
    (tmp_path / "file").write_text("in the way")
    answers(PLAN)
    assert planner(kept=tmp_path / "file" / "plan.json").plan(PROFILE) == PLAN
    assert "the next start will measure again" in caplog.text
    answers()
    planner(rank=1, answer=json.dumps({"plan": asdict(PLAN)}).encode(), kept=tmp_path / "other.json").plan(PROFILE)
    assert not (tmp_path / "other.json").exists(), "one rank writes"


def test_other_ranks_ask_nobody(answers: Any) -> None:
    answers()
    with pytest.raises(ConfigError, match="nothing fits"):
        planner(rank=1, answer=json.dumps({"fault": "nothing fits"}).encode()).plan(PROFILE)


def test_the_real_planner_and_simulator_and_the_plan_for_the_next_start(
    caplog: pytest.LogCaptureFixture, tmp_path: pathlib.Path
) -> None:
    caplog.set_level(logging.INFO)
    uneven, kept = sample_profile(((1,), (5,))), tmp_path / "new" / "plan.json"
    plan = planner(kept=kept).plan(uneven)
    assert plan.layout == uneven.layout
    assert read_plan(kept).layout.split == ((3,), (3,))
    assert read_plan(kept).predicted_iteration_us < plan.predicted_iteration_us
    assert f"the plan for the next start is in {kept}" in caplog.text
    assert "for the next start: --pipeline-model-parallel-layout 'Et*3|t*3L' (predicted iteration " in caplog.text
    assert layout_text(uneven.layout.split) not in caplog.text
    assert predicted_us(uneven, plan, limit_s=60) == pytest.approx(plan.predicted_iteration_us)
    with pytest.raises(PlannerError, match="found "):
        plan_for(uneven, 1e-6, limit_s=60)
    with pytest.raises(PlannerError, match=r"overlap-recompute plan took more than 0\.001 s"):
        plan_for(uneven, 1.0, limit_s=0.001)


def test_a_full_disk_is_a_planner_without_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """A run that has a plan goes on with it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(PlannerError, match="No such file"):
        plan_for(PROFILE, 1.0, limit_s=60)
    with pytest.raises(PlannerError, match="No such file"):
        predicted_us(PROFILE, PLAN, limit_s=60)


def test_changes_fit_on_a_line() -> None:
    assert changes_in_words(PLAN, PLAN) == ""
    other = dropping(PLAN, ("norm", "act"), 1.0)
    (stage,) = other.stages
    fills = tuple(PlannedFill(layer=0, unit=unit, window="B1.0") for unit in ("fc", "act"))
    other = replace(other, stages=(replace(stage, fills=fills, window_kinds=(), prefetch_cap_bytes=3 << 20),))
    assert changes_in_words(PLAN, other) == (
        "layers 1-2: +norm -fc; stage 0: windows tp_backward+pp_wait -> none, prefetch cap 0.00 -> 3.00 MiB, "
        "units of a window 1 -> 2"
    )


def test_the_budget_is_the_flags_or_most_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert budget_gib_of(options(memory_gib=8.0), CPU) == 8.0
    assert budget_gib_of(options(memory_gib=None), torch.device("cuda", 0)) == pytest.approx(72.0)
