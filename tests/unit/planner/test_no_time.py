"""A search that runs out of time before it has found anything."""

import pathlib

import pytest

from overlap_recompute.cli.main import main
from overlap_recompute.plan.codec import write_record
from overlap_recompute.planner import make_plan, solve
from overlap_recompute.planner.highs import Answer, Call, SolverError, SolverProcess
from tests.unit.plan.samples import sample_profile

TIME_IS_UP = Answer(status=1, values=None, bound=None)
"""As SciPy reports a time limit without a solution."""


@pytest.mark.parametrize(("planner", "start"), [("opt", "solve_mix"), ("checkmate", "least_recompute")])
def test_no_solution_in_time_is_an_error_and_overwrites_nothing(
    planner: str,
    start: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    profile = sample_profile(((3,), (3,)))
    budget_bytes = max(stage.predicted.memory.total_bytes for stage in make_plan(profile, "full", 1 << 50).stages) + 4
    monkeypatch.setattr(solve, start, lambda *_: None)
    monkeypatch.setattr(SolverProcess, "__call__", lambda self, call: _answer(call))
    with pytest.raises(SolverError, match="no plan for stage 0 within the time limit.*--planner heu"):
        make_plan(profile, planner, budget_bytes, time_limit_s=0.2)
    write_record(tmp_path / "profile.json", profile)
    (tmp_path / "plan.json").write_text("the plan before")
    words = ["plan", f"{tmp_path}/profile.json", "--planner", planner]
    words += ["--memory-gib", f"{budget_bytes / (1 << 30):.12f}"]
    assert main([*words, "--no-baselines", "--time-limit-s", "1", "--output", f"{tmp_path}/plan.json"]) == 2
    assert "within the time limit" in capsys.readouterr().err
    assert (tmp_path / "plan.json").read_text() == "the plan before"


def _answer(call: Call) -> Answer:
    assert call.limit_s <= 1
    return TIME_IS_UP
