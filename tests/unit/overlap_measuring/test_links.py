"""A line through measured transfers."""

import pytest

from megatron.overlap.measuring.finish import _in_flight
from megatron.overlap.measuring.links import fit_of
from megatron.overlap.measuring.passes import Step
from overlap_recompute.plan.profile import LinkFit


def test_exact_points_give_their_line() -> None:
    fit = fit_of("send", [(nbytes, 50.0 + 0.02 * nbytes) for nbytes in (4096, 65536, 1 << 20)])
    assert fit.alpha_us == pytest.approx(50.0)
    assert fit.beta_us_per_byte == pytest.approx(0.02)
    assert fit.points[0] == (4096, 50.0 + 0.02 * 4096)


def test_neither_term_is_negative() -> None:
    steep = fit_of("send", [(100, 1.0), (1000, 100.0)])
    assert steep.alpha_us == 0
    assert steep.beta_us_per_byte > 0
    falling = fit_of("send", [(100, 9.0), (1000, 7.0)])
    assert falling.beta_us_per_byte == 0
    assert 7.0 < falling.alpha_us < 9.0
    assert fit_of("send", [(64, 3.0)]).alpha_us == 3.0


def test_what_compute_hides_ends_when_the_communication_does() -> None:
    hidden_us = _in_flight([LinkFit(name="all_reduce", alpha_us=10.0, beta_us_per_byte=0.1)])
    step = Step("tp_backward", "all_reduce", 0.5, hidden_us=200.0, nbytes=400)
    assert hidden_us(step) == 200.0, "it was in flight all the time"
    assert hidden_us(step._replace(was_over=True)) == 50.0
    assert hidden_us(step._replace(was_over=True, name="all_gather")) == 200.0, "no fit to go by"
