"""--overlap-recompute-plan: layers go where the plan says, and other runs' plans are refused."""

import os
import pathlib
from dataclasses import replace

import pytest

from megatron.pretrain.config import PretrainConfig, parse_command_line, validate
from megatron.pretrain.config.model_fingerprint import model_fingerprint
from megatron.pretrain.config.run_layout import layout_of
from overlap_recompute.plan.codec import write_record
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.plan_file import Plan, PlannedFill, StagePlan
from overlap_recompute.plan.software import software_versions
from overlap_recompute.plan.split import Split
from tests.unit.config.conftest import Parse, environment
from tests.unit.plan.samples import sample_plan, sample_profile

PP2 = "--pipeline-model-parallel-size 2"


def plan_for(config: PretrainConfig, split: Split) -> Plan:
    """A plan that the run of `config` may carry out."""
    plan = sample_plan(sample_profile(split))
    return replace(
        plan,
        model_fingerprint=model_fingerprint(config),
        layout=replace(layout_of(config), split=split),
        software=software_versions(),
    )


@pytest.fixture
def with_plan(parse: Parse, tmp_path: pathlib.Path):
    """Parses flags with a plan that fits but for the changes."""

    def build(flags: str = "", *, split: Split = ((1,), (3,)), **changes: object) -> PretrainConfig:
        path = tmp_path / "plan.json"
        write_record(path, replace(plan_for(parse(PP2, world_size=2), split), **changes))
        return parse(f"{PP2} --overlap-recompute --overlap-recompute-plan {path} {flags}", world_size=2)

    return build


def test_the_split_is_the_plans(with_plan) -> None:
    config = with_plan()
    validate(config)
    assert config.parallel.pipeline_model_parallel_layout == "Et|t*3L"
    assert layout_of(config).split == ((1,), (3,))
    assert any("--pipeline-model-parallel-layout is Et|t*3L, as in" in note for note in config.notes)


def test_an_even_split_needs_no_layout(with_plan) -> None:
    config = with_plan(split=((2,), (2,)))
    validate(config)
    assert config.parallel.pipeline_model_parallel_layout is None


def test_a_layout_that_says_the_same_is_accepted(with_plan) -> None:
    validate(with_plan("--pipeline-model-parallel-layout Et|tttL"))


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        ("--pipeline-model-parallel-layout Ettt|tL", {}, "layout.split is Et|t*3L; expected Et*3|tL, as in this run"),
        ("--micro-batch-size 1 --global-batch-size 4", {}, "layout.micro_batch is 2; expected 1"),
        ("--attention-dropout 0.25", {}, "model_fingerprint is"),
        ("--no-bias-gelu-fusion", {}, "model_fingerprint is"),
        ("", {"model_fingerprint": "m0"}, "model_fingerprint is m0; expected"),
        ("", {"software": (("torch", "1.0"),)}, "software is torch 1.0 (here"),
    ],
)
def test_plans_of_other_runs_are_refused(with_plan, flags: str, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(with_plan(flags, **changes))
    assert message in str(error.value)


def test_a_computed_plan_names_no_versions(with_plan) -> None:
    validate(with_plan(software=()))


def fills_a_wait(plan: Plan, window: str) -> tuple[StagePlan, ...]:
    """The plan's stages, the second with one more unit: in a wait for another stage."""
    first, second = plan.stages
    fill = PlannedFill(layer=second.layers[0].layer, unit="fc", window=window)
    return first, replace(second, fills=(*second.fills, fill))


@pytest.mark.parametrize("window", ["P", "PF"])
def test_a_plan_that_fills_waits_is_refused_with_schedules_that_fill_none(with_plan, parse: Parse, window: str) -> None:
    validate(with_plan("--schedule-impl stock"))
    stages = fills_a_wait(plan_for(parse(PP2, world_size=2), ((1,), (3,))), window)
    validate(with_plan(stages=stages))
    validate(with_plan("--schedule-impl stock --overlap-recompute-serialize", stages=stages))
    with pytest.raises(ConfigError) as error:
        validate(with_plan("--schedule-impl stock", stages=stages))
    assert "whose plan.stages[1].fills puts 1 of 2 units into waits for other stages" in str(error.value)
    assert "remove --schedule-impl stock" in str(error.value)


def test_a_plan_of_the_runs_own_is_followed_with_stock_schedules_and_a_note(with_kept_plan, parse: Parse) -> None:
    stages = fills_a_wait(plan_for(parse(PP2, world_size=2), ((1,), (3,))), "P")
    config = with_kept_plan("--overlap-recompute-memory-gib 4 --schedule-impl stock", stages=stages)
    validate(config)
    assert config.overlap.overlap_recompute_plan is not None
    assert any("--schedule-impl stock fills no wait for another stage" in note for note in config.notes)


def test_the_number_of_microbatches_may_differ(with_plan) -> None:
    validate(with_plan("--global-batch-size 64"))


def test_a_plan_in_a_pipe_is_refused_before_it_is_read(parse: Parse, tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "plan.json")
    with pytest.raises(ConfigError, match="plan.json, which is a pipe or a device; expected a file"):
        validate(parse(f"--overlap-recompute --overlap-recompute-plan {tmp_path}/plan.json"))


@pytest.fixture
def with_kept_plan(parse: Parse, tmp_path: pathlib.Path):
    """Parses the flags of a run that plans for itself, with a plan that an earlier start has left."""

    def build(
        flags: str = "--overlap-recompute-memory-gib 4", *, split: Split = ((1,), (3,)), **changes: object
    ) -> PretrainConfig:
        path = tmp_path / "kept.json"
        plan = plan_for(parse(PP2, world_size=2), split)
        write_record(path, replace(plan, **({"budget_bytes": 4 << 30} | changes)))
        auto = f"--overlap-recompute --overlap-recompute-auto --overlap-recompute-auto-plan {path}"
        return parse(f"{PP2} {auto} {flags}", world_size=2)

    return build


def test_the_plan_of_an_earlier_start_is_followed_with_its_split(with_kept_plan, tmp_path: pathlib.Path) -> None:
    config = with_kept_plan()
    validate(config)
    assert config.overlap.overlap_recompute_plan == str(tmp_path / "kept.json")
    assert layout_of(config).split == ((1,), (3,))
    assert any("is followed: nothing is measured" in note for note in config.notes)
    again = parse_command_line(config.to_argv(), environment(2))
    validate(again)
    assert again.overlap == config.overlap


def test_a_run_that_plans_again_and_again_takes_the_split_alone(with_kept_plan) -> None:
    config = with_kept_plan("--overlap-recompute-memory-gib 4 --overlap-recompute-replan-interval 5")
    validate(config)
    assert config.overlap.overlap_recompute_plan is None
    assert layout_of(config).split == ((1,), (3,))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--overlap-recompute-memory-gib 5", "is for 4 GiB a rank: the run measures and plans anew"),
        (
            "--overlap-recompute-memory-gib 4 --pipeline-model-parallel-layout Ettt|tL",
            "for another split of the layers than the flags': the run measures and plans anew; without those flags it "
            "takes the plan's (Et|t*3L)",
        ),
    ],
)
def test_a_kept_plan_for_something_else_is_not_followed(with_kept_plan, flags: str, words: str) -> None:
    config = with_kept_plan(flags)
    validate(config)
    assert config.overlap.overlap_recompute_plan is None
    assert any(words in note for note in config.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"model_fingerprint": "m0"}, "model_fingerprint is m0; expected"), ({"version": 99}, "version")],
)
def test_a_kept_plan_of_another_run_or_a_damaged_one_is_refused(with_kept_plan, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(with_kept_plan(**changes))
    assert message in str(error.value)
    assert "kept.json" in str(error.value)


def test_a_first_start_finds_no_plan(parse: Parse, tmp_path: pathlib.Path) -> None:
    auto = f"--overlap-recompute --overlap-recompute-auto --overlap-recompute-auto-plan {tmp_path}/none.json"
    config = parse(f"{PP2} {auto} --overlap-recompute-memory-gib 4", world_size=2)
    validate(config)
    assert config.overlap.overlap_recompute_plan is None


def test_a_kept_plan_without_auto_is_refused(parse: Parse) -> None:
    with pytest.raises(ConfigError, match="--overlap-recompute-auto-plan without --overlap-recompute-auto"):
        validate(parse(f"{PP2} --overlap-recompute --overlap-recompute-auto-plan plan.json", world_size=2))
