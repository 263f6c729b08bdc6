"""A line through measured transfers."""

import random

import pytest

from megatron.overlap.measuring.finish import _in_flight
from megatron.overlap.measuring.links import ROUNDS, SHORTEST_PAUSE_S, fit_of, sizes_of
from megatron.overlap.measuring.passes import Step
from megatron.overlap.measuring.samples import median_us
from overlap_recompute.plan.profile import LinkFit

MIB = 1 << 20
BURST_BYTES = 128 << 10
BETAS = (0.04, 0.0267, 0.08)
"""200, 300 and 100 Mbit/s."""


class TokenBucket:
    """A link that lets so much pass at once, and refills at its rate; at random a transfer is late."""

    def __init__(self, beta: float, seed: int) -> None:
        self.beta, self._random = beta, random.Random(seed)
        self._tokens = float(BURST_BYTES)

    def pause(self, length_us: float) -> None:
        self._tokens = min(BURST_BYTES, self._tokens + length_us / self.beta)

    def transfer_us(self, nbytes: int) -> float:
        waits_us = max(0.0, nbytes - self._tokens) * self.beta
        self._tokens = max(0.0, self._tokens - nbytes)
        late_us = 20_000.0 if self._random.random() < 0.1 else 0.0
        return (90.0 + waits_us) * self._random.uniform(0.98, 1.03) + late_us


def points_of(link: TokenBucket, payload_bytes: int) -> list[tuple[int, float]]:
    """As `measure_links` takes them: medians of transfers, each of them after a pause."""
    points = []
    for nbytes in sizes_of(payload_bytes, 2):
        times = []
        for _ in range(ROUNDS):
            link.pause(max(SHORTEST_PAUSE_S * 1e6, times[-1] if times else 0.0))
            times.append(link.transfer_us(nbytes))
        points.append((nbytes, median_us(times)))
    return points


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


@pytest.mark.parametrize("beta", BETAS)
def test_rate_and_burst_of_a_token_bucket_are_found(beta: float) -> None:
    fit = fit_of("send", points_of(TokenBucket(beta, seed=1), MIB))
    assert fit.beta_us_per_byte == pytest.approx(beta, rel=0.05)
    assert fit.burst_bytes == pytest.approx(BURST_BYTES, rel=0.1)
    for nbytes in (MIB // 2, MIB, 4 * MIB):
        assert fit.duration_us(nbytes) == pytest.approx(90.0 + (nbytes - BURST_BYTES) * beta, rel=0.06)
    assert fit.duration_us(4096) == pytest.approx(90.0, rel=0.1)


def test_a_straight_line_gets_no_bend() -> None:
    noise = random.Random(2)
    sizes = sizes_of(MIB, 2)
    fit = fit_of("send", [(nbytes, (60.0 + 0.03 * nbytes) * noise.uniform(0.9, 1.1)) for nbytes in sizes])
    assert fit.burst_bytes == 0
    assert fit.beta_us_per_byte == pytest.approx(0.03, rel=0.1)


def test_sizes_go_up_to_the_payload() -> None:
    assert sizes_of(1 << 20, 2) == [1 << power for power in range(12, 21)]
    assert sizes_of(1_000_003, 2)[-3:] == [1 << 18, 1 << 19, 1_000_000]
    assert sizes_of(1000, 4) == [992, 4096]
    assert sizes_of(4096, 2) == [4096]
    assert sizes_of(8192, 2) == [4096, 8192]


def test_what_compute_hides_ends_when_the_communication_does() -> None:
    hidden_us = _in_flight([LinkFit(name="all_reduce", alpha_us=10.0, beta_us_per_byte=0.1)])
    step = Step("tp_backward", "all_reduce", 0.5, hidden_us=200.0, nbytes=400)
    assert hidden_us(step) == 200.0, "it was in flight all the time"
    assert hidden_us(step._replace(was_over=True)) == 50.0
    assert hidden_us(step._replace(was_over=True, name="all_gather")) == 200.0, "no fit to go by"
