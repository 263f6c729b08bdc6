"""Profiles of other links and devices."""

import dataclasses

import pytest

from overlap_recompute.plan.profile import LinkFit, PassStep
from overlap_recompute.simulator import simulate
from overlap_recompute.simulator.stage_model import to_us, transfer_fs
from overlap_recompute.simulator.variations import varied
from tests.unit.plan.samples import sample_profile
from tests.unit.simulator.models import plan_of

KIB = 1 << 10
SEND = LinkFit(name="send", alpha_us=50.0, beta_us_per_byte=0.04, burst_bytes=128 * KIB)
REDUCE = LinkFit(name="all_reduce", alpha_us=100.0, beta_us_per_byte=0.03)


def test_a_burst_passes_at_once_and_the_rest_at_the_rate() -> None:
    assert SEND.duration_us(64 * KIB) == SEND.duration_us(128 * KIB) == 50.0
    assert SEND.duration_us(1024 * KIB) == pytest.approx(50.0 + 896 * KIB * 0.04)
    profile = dataclasses.replace(sample_profile(((2,), (2,))), links=(SEND,), boundary_bytes=1024 * KIB)
    assert to_us(transfer_fs(profile, 2)) == pytest.approx(SEND.duration_us(1024 * KIB))
    half = varied(profile, bandwidth=0.5)
    assert to_us(transfer_fs(half, 2)) == pytest.approx(50.0 + 896 * KIB * 0.08), "the bucket is as deep as before"


def test_the_update_waits_for_links_and_computes_on_the_device() -> None:
    profile = dataclasses.replace(sample_profile(((4,),)), update_us=300.0, update_communication_us=200.0)
    assert varied(profile, bandwidth=2.0).update_us == pytest.approx(100.0 + 100.0)
    assert varied(profile, compute=2.0).update_us == pytest.approx(50.0 + 200.0)
    other = varied(profile, bandwidth=0.5, compute=4.0)
    assert (other.update_us, other.update_communication_us) == (pytest.approx(25.0 + 400.0), pytest.approx(400.0))
    again = varied(other, bandwidth=2.0, compute=0.25)
    assert again.update_us == pytest.approx(profile.update_us)
    times_us = [simulate(each, plan_of(each, 4, ())).iteration_us for each in (profile, other)]
    assert times_us[0] > 300.0
    assert times_us[1] > 425.0


def test_latency_of_a_collective_stays_and_its_rate_changes() -> None:
    window = PassStep(kind="tp_forward", name="all_reduce", duration_us=900.0, hidden_us=200.0)
    base = sample_profile(((4,),))
    kind = dataclasses.replace(base.kinds[0], forward=(window,))
    profile = dataclasses.replace(base, kinds=(kind,), layers=(0,) * len(base.layers), links=(REDUCE,))
    (step,) = varied(profile, bandwidth=0.5).kinds[0].forward
    assert step.duration_us + step.hidden_us == pytest.approx(100.0 + 2 * 1000.0)
    assert step.hidden_us == 200.0
