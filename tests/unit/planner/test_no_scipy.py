"""A machine without SciPy: the program as it is, with a `scipy` in front of the real one that cannot be imported."""

import os
import pathlib
import subprocess
import sys

import pytest

from overlap_recompute.plan.codec import write_record
from overlap_recompute.planner import make_plan
from tests.unit.plan.samples import sample_profile

MESSAGE = "found no SciPy, which this planner needs; expected an installed scipy"


@pytest.fixture
def command(tmp_path: pathlib.Path) -> list[str]:
    """A profile, and a budget at which something has to be dropped."""
    profile = sample_profile(((3,), (3,)))
    write_record(tmp_path / "profile.json", profile)
    least, most = (
        max(stage.predicted.memory.total_bytes for stage in make_plan(profile, name, 1 << 50).stages)
        for name in ("full", "none")
    )
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy" / "__init__.py").write_text("raise ModuleNotFoundError('No module named scipy')\n")
    program = [sys.executable, "-m", "overlap_recompute", "plan", str(tmp_path / "profile.json")]
    return [*program, "--memory-gib", f"{(least + most) / 2 / (1 << 30):.12f}", "--output", str(tmp_path / "plan.json")]


def run(command: list[str], folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.getcwd()])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("planner", ["opt", "checkmate"])
def test_a_planner_that_needs_it_says_so(command: list[str], planner: str, tmp_path: pathlib.Path) -> None:
    done = run([*command, "--planner", planner, "--no-baselines"], tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and MESSAGE in done.stderr
    assert not (tmp_path / "plan.json").exists()


def test_others_plan_without_it_and_say_which_baseline_cannot(command: list[str], tmp_path: pathlib.Path) -> None:
    done = run(command, tmp_path)
    assert done.returncode == 0 and (tmp_path / "plan.json").exists()
    assert f"no plan by checkmate: {MESSAGE}" in done.stdout
