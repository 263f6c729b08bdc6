"""Long iterations: few microbatches are simulated, and the figures are those of all."""

import dataclasses

import pytest

from overlap_recompute.plan.split import Split
from overlap_recompute.simulator import simulate
from tests.unit.plan.samples import sample_profile
from tests.unit.simulator.models import plan_of
from tests.unit.simulator.test_properties import numbers

SPLITS: tuple[tuple[Split, int], ...] = (
    (((3,),), 101),
    (((2,), (2,)), 90),
    (((3,), (2,), (3,)), 80),
    (((1, 2), (1, 1)), 70),
    (((1, 1, 1),) * 3, 60),
)


@pytest.mark.parametrize(("split", "microbatches"), SPLITS)
@pytest.mark.parametrize("cap_bytes", [0, 400, 10_000])
def test_periods_add_up_to_the_full_simulation(split: Split, microbatches: int, cap_bytes: int) -> None:
    profile = sample_profile(split)
    plan = plan_of(profile, microbatches, ("fc", "act"), prefetch_cap_bytes=cap_bytes)
    short, full = simulate(profile, plan), simulate(profile, plan, every_microbatch=True)
    assert short.simulated_microbatches < microbatches == full.simulated_microbatches
    assert numbers(short) == pytest.approx(numbers(full), rel=1e-9)
    assert short.period_us == full.period_us > 0


def test_stages_that_are_nearly_alike_settle_late_and_right() -> None:
    """A stage that is faster by one part in ten thousand gets ahead for long before it has to wait."""
    profile = sample_profile(((2,), (2,), (2,)))
    slower = dataclasses.replace(
        profile.kinds[0],
        forward=tuple(
            dataclasses.replace(step, duration_us=step.duration_us * 1.0001) for step in profile.kinds[0].forward
        ),
    )
    profile = dataclasses.replace(profile, kinds=(profile.kinds[0], slower), layers=(0, 0, 1, 1, 0, 1))
    plan = plan_of(profile, 120, ("act",))
    assert numbers(simulate(profile, plan)) == pytest.approx(numbers(simulate(profile, plan, every_microbatch=True)))
