"""`overlap-recompute validate` and `diff` on real files."""

import dataclasses
import json
import pathlib

import pytest

from overlap_recompute.cli.main import main
from overlap_recompute.plan.codec import write_record
from tests.unit.plan.samples import sample_plan, sample_profile


@pytest.fixture
def files(tmp_path: pathlib.Path) -> pathlib.Path:
    profile = sample_profile()
    plan = sample_plan(profile)
    first, *rest = plan.stages
    keeps = dataclasses.replace(
        first, layers=tuple(dataclasses.replace(entry, dropped=()) for entry in first.layers), fills=()
    )
    write_record(tmp_path / "profile.json", profile)
    write_record(tmp_path / "plan.json", plan)
    write_record(tmp_path / "other.json", dataclasses.replace(plan, stages=(keeps, *rest), planner="mix"))
    write_record(tmp_path / "stranger.json", dataclasses.replace(plan, model_fingerprint="m1"))
    return tmp_path


def test_validate_tells_what_the_files_are(files: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["validate", f"{files}/plan.json", f"{files}/profile.json", "--profile", f"{files}/profile.json"])
    shown = capsys.readouterr().out
    assert status == 0
    assert (
        "stage 0: layers 0-1: recompute fc, act" in shown
        and "layers: Et*2|t*2L" in shown
        and "source: measured" in shown
    )


def test_validate_speaks_json(files: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", f"{files}/plan.json", "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["valid"] is True and facts["what"] == "plan" and facts["planner"] == "heu"


@pytest.mark.parametrize("name", ["stranger.json", "missing.json", "text.json", "list.json"])
def test_validate_refuses(name: str, files: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "text.json").write_text("no json")
    (files / "list.json").write_text("{}")
    assert main(["validate", f"{files}/{name}", "--profile", f"{files}/profile.json"]) == 2
    assert name in capsys.readouterr().err


def test_diff_shows_layers_and_sizes(files: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", f"{files}/plan.json", f"{files}/other.json"]) == 1
    shown = capsys.readouterr().out
    assert "- layers 0-1: recompute fc, act" in shown and "+ layers 0-1: keep everything" in shown
    assert main(["diff", f"{files}/plan.json", f"{files}/other.json", "--json"]) == 1
    changes = json.loads(capsys.readouterr().out)
    assert changes["layers"]["0"] == {"recomputed_only_in_second": [], "recomputed_only_in_first": ["fc", "act"]}


def test_a_plan_does_not_differ_from_itself(files: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", f"{files}/plan.json", f"{files}/plan.json"]) == 0
    assert "no decision differs" in capsys.readouterr().out


def test_plans_of_two_models_are_not_compared(files: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", f"{files}/plan.json", f"{files}/stranger.json"]) == 2
    assert "two plans of one model" in capsys.readouterr().err
