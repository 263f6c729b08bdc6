"""The planner and the simulator, each call in a process of its own: training ranks never import them."""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from overlap_recompute.plan.codec import FileError, write_record
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.validation import read_plan

PLANNER = "mix"


class PlannerError(Exception):
    """It gave no answer; the text is its own."""


def plan_for(profile: Profile, budget_gib: float, *, limit_s: float, partition: bool = False) -> Plan:
    """A plan for a budget of one rank.

    Args:
        profile: what was measured.
        budget_gib: memory of one rank.
        limit_s: how long it may take.
        partition: search for the best split of the layers, too.

    Raises:
        PlannerError: there is none, or not in time.
    """
    with _files() as (source, target):
        write_record(source, profile)
        _ask(
            "plan", str(source), "--memory-gib", f"{budget_gib:.6g}", "--planner", PLANNER, "--no-baselines",
            "--output", str(target), *(["--partition"] if partition else []), limit_s=limit_s,
        )  # fmt: skip
        return read_plan(target)


def predicted_us(profile: Profile, plan: Plan, *, limit_s: float) -> float:
    """How long an iteration of the plan takes with the times of the profile.

    Raises:
        PlannerError: the two do not fit each other, or the answer is not there in time.
    """
    with _files() as (source, target):
        write_record(source, profile)
        write_record(target, plan)
        answer = json.loads(_ask("simulate", str(source), str(target), "--json", limit_s=limit_s))
    return float(answer["iteration_us"])


@contextlib.contextmanager
def _files() -> Iterator[tuple[Path, Path]]:
    """Paths of a profile and a plan in a folder that is removed again; where they fail, the planner does."""
    try:
        with tempfile.TemporaryDirectory(prefix="overlap-recompute-") as folder:
            yield Path(folder) / "profile.json", Path(folder) / "plan.json"
    except (OSError, FileError) as error:
        raise PlannerError(str(error)) from error


def _ask(*words: str, limit_s: float) -> str:
    """What `overlap-recompute` prints."""
    command = [sys.executable, "-m", "overlap_recompute", *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise PlannerError(f"overlap-recompute {words[0]} took more than {limit_s:g} s") from None
    if done.returncode:
        raise PlannerError(done.stderr.strip()[-2000:] or f"overlap-recompute {words[0]} exited {done.returncode}")
    return done.stdout
