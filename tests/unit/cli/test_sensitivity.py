"""`overlap-recompute sweep --sensitivity`: the sentences under the table, from known points."""

import json

import pytest

from overlap_recompute.cli.main import main
from overlap_recompute.cli.sweep_sensitivity import bounds, says
from overlap_recompute.planner.sweeps import FACTORS, Sensitivity


def points(gains: dict[float, float], stale: dict[float, float]) -> list[Sensitivity]:
    return [
        Sensitivity(what="bandwidth", factor=factor, gain=gains.get(factor, 1.05), stale_gain=stale.get(factor, 1.05))
        for factor in FACTORS
    ]


def test_it_says_where_the_gain_vanishes_and_where_the_plan_loses() -> None:
    found = says(points({4.0: 1.03, 8.0: 1.0}, {0.5: 1.0, 0.25: 0.98}), "adapipe")
    assert found == [
        "Where the gain vanishes (below 1 %):",
        "  bandwidth: 5.0% as the profile is; vanishes above 6.3 times the profile's",
        "How wrong the profile may be before the plan made for it loses to adapipe (by 0.5 %):",
        "  bandwidth: it loses where the real one is below 0.42 times the profile's",
    ]


def test_it_says_when_the_gain_stays_and_the_plan_never_loses() -> None:
    found = says(points({}, {8.0: 1.002}), "full")
    assert found[1] == "  bandwidth: 5.0% as the profile is; it stays from 0.125 to 8 times the profile's"
    assert found[3] == "  bandwidth: it never does from 0.125 to 8 times the profile's; at worst its gain is 0.2%"


def test_without_a_gain_it_says_where_there_would_be_one() -> None:
    flat = dict.fromkeys(FACTORS, 1.0)
    assert "there is none from 0.125 to 8 times" in says(points(flat, flat), "full")[1]
    thin = says(points({**flat, 0.25: 1.06}, {**flat, 1.0: 0.97}), "full")
    assert thin[1] == "  bandwidth: none as the profile is (0.0%); at 0.25 times it is 6.0%"
    assert thin[3] == "  bandwidth: it loses already as the profile is (-3.0%)"


def test_a_bound_lies_between_its_factors_by_their_logarithm() -> None:
    row = points({2.0: 1.03, 4.0: 0.99}, {})
    below, above = bounds(row, lambda point: point.gain, 1.01)
    assert below is None and above == pytest.approx(2.0 * 2**0.5)
    assert bounds(row[:2], lambda point: point.gain, 1.01) == (None, None)  # without the profile's own factor


def test_it_computes_the_profile_of_a_model_on_hardware(capsys: pytest.CaptureFixture[str]) -> None:
    words = "sweep --sensitivity --models gpt-1.3b --hardware a100-40gb-pcie --tensor-parallel 2 --pipeline-parallel 1"
    rest = "--micro-batch 8 --memory-share 0.1 --planner full --baseline stock-full"
    assert main([*words.split(), *rest.split(), "--json"]) == 0
    found = {(point["what"], point["factor"]): point for point in json.loads(capsys.readouterr().out)["points"]}
    # Stock full recompute repeats collectives: the thinner the link, the more that costs.
    gains = [found["bandwidth", factor]["gain"] for factor in FACTORS]
    assert gains == sorted(gains, reverse=True) and gains[0] > gains[-1] + 0.1
    assert found["bandwidth", 1.0]["gain"] == pytest.approx(found["bandwidth", 1.0]["stale_gain"])
