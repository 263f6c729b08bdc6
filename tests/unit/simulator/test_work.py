"""How much a simulation does, counted in calls of functions and not in seconds."""

import sys
from types import FrameType
from typing import Any

from overlap_recompute.plan.profile import Profile
from overlap_recompute.simulator import simulate
from tests.unit.plan.samples import sample_profile
from tests.unit.simulator.models import plan_of

STAGES = 4


def _calls(layers: int, microbatches: int, *, every_microbatch: bool) -> int:
    """Of functions, in a simulation."""
    profile: Profile = sample_profile(((layers // STAGES,),) * STAGES)
    plan = plan_of(profile, microbatches, ("fc", "act"), prefetch_cap_bytes=10_000)
    simulate(profile, plan, every_microbatch=every_microbatch)  # makes the lists of this size, which are kept
    counted = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        simulate(profile, plan, every_microbatch=every_microbatch)
    finally:
        sys.setprofile(before)
    return counted


def test_every_microbatch_costs_the_same() -> None:
    """The work grows by straight lines: the second hundred of microbatches costs what the first one does."""
    few, more, most = (_calls(16, count, every_microbatch=True) for count in (100, 200, 400))
    assert abs((most - more) - 2 * (more - few)) <= 0.02 * (most - more)


def test_layers_cost_no_more_than_their_number() -> None:
    small, large = (_calls(layers, 128, every_microbatch=True) for layers in (16, 64))
    assert large <= 4 * small


def test_a_steady_state_is_simulated_once() -> None:
    """From some number on, more microbatches are no more work."""
    few, most = (_calls(16, count, every_microbatch=False) for count in (128, 1024))
    assert most <= 1.02 * few
    assert most < 0.25 * _calls(16, 1024, every_microbatch=True)
