"""A profile of a real run: GPT of 4 layers on two stages, 8 microbatches, 400 Mbit/s; its command is in the file.

Its layers' working sets differ by what they drop, which made fast planners miss what `checkmate` found.
"""

import pathlib

import pytest

from overlap_recompute.plan.validation import read_profile
from overlap_recompute.planner import make_plan
from overlap_recompute.planner.verify import find_plan_faults
from tests.unit.planner.test_waits import budget_between

PROFILE = read_profile(pathlib.Path(__file__).parent / "data" / "pp2_profile.json")


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_no_baseline_is_faster_in_the_same_memory(share: float) -> None:
    budget_bytes = budget_between(PROFILE, share)
    baselines = [make_plan(PROFILE, name, budget_bytes) for name in ("checkmate", "adapipe", "full", "early")]
    for planner in ("heu", "mix"):
        plan = make_plan(PROFILE, planner, budget_bytes)
        assert not find_plan_faults(PROFILE, plan)
        # A thousandth: choices are compared with waits as they are in the steady state.
        assert plan.predicted_iteration_us <= 1.001 * min(each.predicted_iteration_us for each in baselines)
