"""Where the answer is known: stages that are alike, links without latency, recompute without limits."""

import dataclasses

import pytest

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.validation import FileError
from overlap_recompute.simulator import simulate
from tests.unit.plan.samples import sample_plan, sample_profile
from tests.unit.simulator.models import plain_profile, plan_of


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 5), (2, 1), (4, 3), (4, 64), (8, 512)])
def test_one_f_one_b(stages: int, microbatches: int) -> None:
    profile = plain_profile(((2,),) * stages, forward_us=3.0, backward_us=7.0)
    result = simulate(profile, plan_of(profile, microbatches))
    ideal_us = microbatches * 2 * (3.0 + 7.0)
    assert result.iteration_us == (microbatches + stages - 1) * 2 * (3.0 + 7.0)
    assert result.bubble_fraction * result.iteration_us / ideal_us == pytest.approx((stages - 1) / microbatches)


@pytest.mark.parametrize(("stages", "chunks", "microbatches"), [(2, 2, 2), (4, 2, 8), (4, 3, 64), (5, 4, 40)])
def test_interleaving_divides_the_bubble(stages: int, chunks: int, microbatches: int) -> None:
    profile = plain_profile(((1,) * chunks,) * stages, forward_us=3.0, backward_us=7.0)
    result = simulate(profile, plan_of(profile, microbatches))
    ideal_us = microbatches * chunks * (3.0 + 7.0)
    bubble_us = result.iteration_us - ideal_us
    assert bubble_us / ideal_us == pytest.approx((stages - 1) / (microbatches * chunks))


def test_one_microbatch_crosses_every_link_twice() -> None:
    profile = plain_profile(((1,),) * 4, forward_us=3.0, backward_us=7.0, transfer_us=11.0)
    assert simulate(profile, plan_of(profile, 1)).iteration_us == 4 * 10.0 + 2 * 3 * 11.0


def test_the_slowest_stage_sets_the_pace() -> None:
    profile = plain_profile(((1,), (3,), (2,)), forward_us=3.0, backward_us=7.0)
    result = simulate(profile, plan_of(profile, 100))
    assert result.period_us == 30.0
    # Before it a forward pass of stage 0, behind it a backward pass; and once it waits for its first gradient, while
    # stage 2 runs forward and backward (20 us) beside its own second forward pass (9 us).
    assert result.iteration_us == 3.0 + 100 * 30.0 + 7.0 + (20.0 - 9.0)


def test_a_saturated_link_sets_the_pace() -> None:
    profile = plain_profile(((1,), (1,)), forward_us=3.0, backward_us=7.0, transfer_us=50.0)
    result = simulate(profile, plan_of(profile, 64))
    # Activation there, gradient back: a cycle in which stage 0 has two microbatches in flight.
    assert result.period_us == pytest.approx((2 * 50.0 + 2 * 10.0) / 2)


@pytest.mark.parametrize("kinds", [(), ("tp_forward", "tp_backward"), ("pp_wait",)])
def test_recompute_without_windows_is_exposed(kinds: tuple[str, ...]) -> None:
    """One stage that only computes: there is nothing to hide behind."""
    profile = plain_profile(((3,),), forward_us=3.0, backward_us=7.0)
    result = simulate(profile, plan_of(profile, 8, ("fc", "act"), window_kinds=kinds))
    assert (result.stages[0].hidden_us, result.stages[0].exposed_us) == (0, 8 * 3 * 70.0)
    assert result.iteration_us == 8 * 3 * (3.0 + 7.0 + 70.0)


def test_a_stage_with_slack_recomputes_for_nothing() -> None:
    """Stage 0 waits 400 us of each period for stage 1; its recompute of 70 us goes there."""
    profile = plain_profile(((1,), (5,)), forward_us=30.0, backward_us=70.0)
    plan = plan_of(profile, 50, ("fc", "act"))
    kept = dataclasses.replace(
        plan.stages[1], layers=tuple(dataclasses.replace(entry, dropped=()) for entry in plan.stages[1].layers)
    )
    plan = dataclasses.replace(plan, stages=(plan.stages[0], kept))
    result, without = simulate(profile, plan), simulate(profile, plan_of(profile, 50))
    assert result.iteration_us == without.iteration_us
    assert (result.stages[0].hidden_us, result.stages[0].exposed_us) == (50 * 70.0, 0)
    on_demand = dataclasses.replace(plan.stages[0], window_kinds=())
    exposed = simulate(profile, dataclasses.replace(plan, stages=(on_demand, kept)))
    assert exposed.stages[0].exposed_us == 50 * 70.0
    assert exposed.iteration_us == without.iteration_us + 70.0  # the slack takes it, but for the last backward pass


def test_throughput_and_utilization() -> None:
    profile = dataclasses.replace(
        plain_profile(((1,), (1,)), 3.0, 7.0), flops_per_token=2e6, peak_tflops=4.0, update_us=90.0
    )
    result = simulate(profile, plan_of(profile, 10))
    seconds = (11 * 10.0 + 90.0) / 1e6
    assert result.tokens_per_s == pytest.approx(10 * 8 / seconds)
    assert result.tflops_per_gpu == pytest.approx(10 * 8 * 2e6 / seconds / 4 / 1e12)  # 2 stages x 2 ranks
    assert result.mfu == pytest.approx(result.tflops_per_gpu / 4.0)


def test_two_stages_need_the_time_of_a_transfer() -> None:
    profile = dataclasses.replace(sample_profile(), links=())
    with pytest.raises(ConfigError, match="without the link `send`"):
        simulate(profile, sample_plan(sample_profile()))


def test_a_plan_of_another_model_is_refused() -> None:
    plan = dataclasses.replace(sample_plan(sample_profile()), model_fingerprint="m1")
    with pytest.raises(FileError, match="model_fingerprint"):
        simulate(sample_profile(), plan)
