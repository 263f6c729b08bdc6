"""`overlap-recompute simulate` on real files."""

import csv
import dataclasses
import json
import pathlib

import pytest

from overlap_recompute.cli.main import main
from overlap_recompute.plan.codec import write_record
from overlap_recompute.simulator import simulate
from tests.unit.plan.samples import sample_plan, sample_profile


@pytest.fixture
def files(tmp_path: pathlib.Path) -> pathlib.Path:
    profile = sample_profile()
    plan = sample_plan(profile)
    write_record(tmp_path / "profile.json", profile)
    write_record(tmp_path / "plan.json", plan)
    write_record(tmp_path / "stranger.json", dataclasses.replace(plan, model_fingerprint="m1"))
    return tmp_path


def test_it_speaks_json(files: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", f"{files}/profile.json", f"{files}/plan.json", "--microbatches", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan = sample_plan(sample_profile())
    expected = simulate(
        sample_profile(), dataclasses.replace(plan, layout=dataclasses.replace(plan.layout, microbatches=64))
    )
    assert found["iteration_us"] == expected.iteration_us and found["microbatches"] == 64
    assert found["simulated_microbatches"] < 64
    assert [stage["exposed_us"] for stage in found["stages"]] == [stage.exposed_us for stage in expected.stages]
    assert main(["simulate", f"{files}/profile.json", f"{files}/plan.json", "--every-microbatch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["simulated_microbatches"] == 4


def test_it_writes_tables_traces_and_a_picture(files: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {flag: files / f"out.{flag}" for flag in ("trace", "csv", "stages-csv")}
    flags = [word for flag, path in names.items() for word in (f"--{flag}", str(path))]
    assert main(["simulate", f"{files}/profile.json", f"{files}/plan.json", "--picture", *flags]) == 0
    shown = capsys.readouterr().out
    assert "iteration: " in shown and "stage 1 ..." in shown and "4 microbatches" in shown
    assert any(event["name"] == "0B3" for event in json.loads(names["trace"].read_text()))
    assert len(list(csv.DictReader(names["csv"].open()))) > 50
    assert [row["stage"] for row in csv.DictReader(names["stages-csv"].open())] == ["0", "1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stranger.json"], "model_fingerprint"),
        ([], "neither a plan nor --planner"),
        (["plan.json", "--planner", "full"], "and --planner"),
        (["--planner", "full"], "--memory-gib"),
        (["plan.json", "--memory-gib", "4"], "--memory-gib with a plan"),
        (["plan.json", "--microbatches", "none"], "--microbatches none"),
        (["plan.json", "--trace", "missing/trace.json"], "cannot be written"),
    ],
)
def test_it_refuses(
    words: list[str],
    message: str,
    files: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files)
    assert main(["simulate", "profile.json", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_planner_makes_the_plan(files: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", f"{files}/profile.json", "--planner", "full", "--memory-gib", "1", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["planner"] == "full" and found["stages"][0]["hidden_us"] + found["stages"][0]["exposed_us"] > 0
