"""`overlap-recompute validate` and `diff` on real files."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator

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


@pytest.mark.parametrize("name", ["stranger.json", "missing.json", "text.json", "list.json", "empty.json"])
def test_validate_refuses(name: str, files: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "text.json").write_text("no json")
    (files / "list.json").write_text("[]")
    (files / "empty.json").write_text("{}")
    assert main(["validate", f"{files}/{name}", "--profile", f"{files}/profile.json"]) == 2
    assert name in capsys.readouterr().err


@contextlib.contextmanager
def piped(words: str, files: pathlib.Path) -> Iterator[list[str]]:
    """The words of a command, with each file's name replaced by a pipe that has its text, as `<(cat FILE)` does it."""
    with contextlib.ExitStack() as stack:
        command = []
        for word in words.split():
            if word.endswith(".json"):
                reading, writing = os.pipe()
                stack.callback(os.close, reading)
                with os.fdopen(writing, "wb") as stream:
                    stream.write((files / word).read_bytes())
            command.append(f"/dev/fd/{reading}" if word.endswith(".json") else word)
        yield command


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("validate plan.json profile.json --profile profile.json", 0),
        ("validate stranger.json --profile profile.json", 2),
        ("diff plan.json other.json", 1),
        ("explain plan.json --profile profile.json", 0),
        ("simulate profile.json plan.json", 0),
        ("plan profile.json --memory-gib 4 --planner full --output /dev/null", 0),
        ("report profile.json plan.json --arms full --output /dev/null", 0),
    ],
)
def test_files_may_be_pipes(words: str, status: int, files: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with piped(words, files) as command:
        assert main(command) == status
    assert "no JSON" not in capsys.readouterr().err


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
