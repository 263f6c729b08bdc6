"""Ctrl-C while opt searches, in a real process: the best plan so far is written, and says what is proven of it."""

import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from overlap_recompute.plan.codec import write_record
from overlap_recompute.plan.validation import check_plan_fits, read_plan
from overlap_recompute.planner import make_plan
from overlap_recompute.planner.highs import SolverError, SolverProcess
from overlap_recompute.planner.opt import improve
from overlap_recompute.planner.solve import Memory, exact_workspace
from overlap_recompute.planner.verify import find_plan_faults
from tests.unit.planner.instances import random_problem
from tests.unit.planner.profiles import profile_of, transformer_kind

GIB = 1 << 30
# Layers without end for a MILP: opt would take far longer than the limit below.
PROFILE = profile_of(
    (transformer_kind(llama=True, link_gb_per_s=250.0),), (0,) * 16, ((8,), (8,)), 16, end_bytes=1 << 20
)
SEARCH_S, PATIENCE_S = 600, 120.0


def budget_gib() -> str:
    least, most = (
        max(stage.predicted.memory.total_bytes for stage in make_plan(PROFILE, name, 1 << 50).stages)
        for name in ("full", "none")
    )
    return f"{(least + 0.15 * (most - least)) / GIB:.3f}"


def wait_for(screen: int, text: bytes) -> bytes:
    """What a terminal shows up to a text."""
    seen, end_s = b"", time.monotonic() + PATIENCE_S
    while text not in seen:
        assert time.monotonic() < end_s, seen
        if select.select([screen], [], [], 0.1)[0]:
            seen += os.read(screen, 4096)
    return seen


def wait_for_children(pid: int) -> list[int]:
    """HiGHS, which runs in a process of its own."""
    end_s, found = time.monotonic() + PATIENCE_S, []
    while not found:
        assert time.monotonic() < end_s
        found = [int(each) for each in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found


def test_ctrl_c_ends_the_search_with_the_best_plan_so_far(tmp_path: pathlib.Path) -> None:
    write_record(tmp_path / "profile.json", PROFILE)
    words = [
        "plan", "profile.json", "--memory-gib", budget_gib(), "--planner", "opt", "--time-limit-s", str(SEARCH_S),
        "--no-baselines", "--output", "plan.json",
    ]  # fmt: skip
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "overlap_recompute", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=terminal
    )
    try:
        os.close(terminal)
        wait_for(screen, b"gap")
        solvers = wait_for_children(process.pid)
        time.sleep(0.3)  # well into the search
        sent_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        shown = process.communicate(timeout=PATIENCE_S)[0].decode()
        assert process.returncode == 0 and time.monotonic() - sent_s < PATIENCE_S
    finally:
        process.kill()
        process.wait()
        os.close(screen)
    plan = read_plan(tmp_path / "plan.json")
    check_plan_fits(plan, PROFILE, "plan")
    assert not find_plan_faults(PROFILE, plan)
    assert re.search(r"search interrupted; .* more than [0-9.]+% \(stage [01], ", plan.note)
    assert plan.note in shown
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in solvers)


def test_a_solver_process_finds_what_this_one_finds() -> None:
    problem = random_problem(7, most_layers=3, most_units=3)
    workspace = exact_workspace(problem, Memory())
    here = improve(workspace, None, limit_s=60.0, gap=0.0)
    with SolverProcess() as solver:
        there = improve(workspace, None, limit_s=60.0, gap=0.0, solver=solver)
        assert here is not None and there is not None
        assert there.exposed_us == pytest.approx(here.exposed_us)


def test_a_solver_process_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    workspace = exact_workspace(random_problem(7, most_layers=3, most_units=3), Memory())
    with SolverProcess() as solver, pytest.raises(SolverError, match="ended by itself"):
        improve(workspace, None, limit_s=60.0, gap=0.0, solver=solver)
