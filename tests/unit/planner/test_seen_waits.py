"""Several chunks on a stage: waits as simulated, and choices that make use of them."""

import dataclasses

import pytest

from overlap_recompute.plan.plan_file import FORWARD_WAIT, PIPELINE_WINDOW
from overlap_recompute.plan.profile import SEND, LinkFit, Profile
from overlap_recompute.planner import make_plan
from overlap_recompute.planner.verify import find_plan_faults
from overlap_recompute.simulator import simulate
from overlap_recompute.simulator.stage_waits import waits_by_chunk
from tests.unit.planner.profiles import profile_of, transformer_kind
from tests.unit.planner.test_waits import budget_between, without_windows

SPLIT = ((1, 1), (1, 1))


def slow_link() -> Profile:
    """Two stages of two chunks, and transfers that take as long as a layer's backward pass."""
    kind = without_windows(transformer_kind(link_gb_per_s=60.0))
    backward_us = sum(step.duration_us for step in kind.backward)
    profile = profile_of((kind,), (0,) * 4, SPLIT, 8, end_bytes=1 << 20)
    link = LinkFit(name=SEND, alpha_us=backward_us, beta_us_per_byte=0.0)
    return dataclasses.replace(profile, links=(link,))


@pytest.mark.parametrize("share", [0.2, 0.25])
def test_waits_of_chunks_are_used(share: float) -> None:
    """A plan that knows the waits beats the optimum of those who recompute on demand, in the same memory."""
    profile = slow_link()
    budget_bytes = budget_between(profile, share)
    plan = make_plan(profile, "mix", budget_bytes)
    blind = make_plan(profile, "checkmate", budget_bytes)
    assert plan.predicted_iteration_us < 0.98 * blind.predicted_iteration_us
    assert max(stage.predicted.memory.total_bytes for stage in plan.stages) <= budget_bytes
    assert not find_plan_faults(profile, plan)
    hidden_us = [stage.hidden_us for stage in simulate(profile, plan).stages]
    assert min(hidden_us) > 0


def test_waits_add_up_to_those_of_the_simulation() -> None:
    """No more than all windows of the iteration, which has waits outside of the steady state besides."""
    profile = slow_link()
    plan = make_plan(profile, "checkmate", budget_between(profile, 0.2))
    result = simulate(profile, plan, every_microbatch=True)
    for waits, stage in zip(waits_by_chunk(profile, plan), result.stages, strict=True):
        assert {name for _, name in waits} <= {FORWARD_WAIT, PIPELINE_WINDOW} and waits
        (whole,) = (use.length_us for use in stage.windows if use.kind == "pp_wait")
        # In the steady state, 8 microbatches; the rest of the iteration has more of them.
        assert 0 < 8 * sum(waits.values()) <= whole * 1.001
