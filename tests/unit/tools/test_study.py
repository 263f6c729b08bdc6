"""tools/reproduce_study.py: its matrix, the arithmetic of gains and parts, and a page that keeps what the rows say."""

import dataclasses
import pathlib

import pytest

from overlap_recompute.cli.room import needed_bytes
from overlap_recompute.planner import InfeasibleError
from overlap_recompute.planner.comparison import run_arm
from tools.study_lib import matrix
from tools.study_lib.arms import ARMS, OURS, stock_block, stock_blocks
from tools.study_lib.figures import (
    EXISTING,
    MEGATRON,
    STEPS,
    at_batch,
    best_of,
    cases,
    gain,
    mean_steps,
    steps,
    steps_of,
    why_none,
)
from tools.study_lib.matrix import (
    BUDGET,
    CLUSTERS,
    DEVICE,
    MODELS,
    NODES,
    PCIE,
    Place,
    Row,
    places,
    run_place,
)
from tools.study_lib.page import page
from tools.study_lib.plots import draw
from tools.study_lib.store import as_data, rows_of

PLACE = Place(model="gpt-1.3b", cluster=PCIE, tensor_parallel=2, pipeline_parallel=2)
SPEEDS = {"none": 150.0, "stock-full": 100.0, "stock-block": 105.0, "selective": 115.0, "full": 112.0}
SPEEDS |= {"adapipe": 120.0, "adapipe+partition": 124.0, "early": 121.0, "mix": 131.0, OURS: 136.0}


def row(arm: str, tokens_per_s: float, **changes: object) -> Row:
    base = Row(
        part=BUDGET, model=PLACE.model, cluster=PLACE.cluster, tensor_parallel=2, pipeline_parallel=2, micro_batch=4,
        sequence=2048, share=0.1, budget_bytes=1 << 30, arm=arm, tokens_per_s=tokens_per_s, mfu=0.3,
        exposed_share=0.05, hidden_share=0.05, peak_bytes=1 << 30,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def rows(**changes: object) -> list[Row]:
    return [row(arm, speed, **changes) for arm, speed in SPEEDS.items()]


def only(found: list[Row]) -> dict[str, Row]:
    (best,) = cases(found, found[0].part).values()
    return best


def test_the_matrix_has_every_model_on_every_cluster_with_room_for_it() -> None:
    found = places()
    assert {(place.model, place.cluster) for place in found} == {(m, c) for m in MODELS for c in CLUSTERS}
    # Only jobs of more than a node of 8 can show what the network does.
    assert all(place.tensor_parallel * place.pipeline_parallel > 8 for place in found if place.cluster == NODES)
    assert places(("gpt-7b",), (PCIE,)) == [p for p in found if (p.model, p.cluster) == ("gpt-7b", PCIE)]


def test_an_arm_is_taken_at_its_own_best_micro_batch() -> None:
    found = only([*rows(part=DEVICE), row("none", 151.0, part=DEVICE, micro_batch=2)])
    assert (found["none"].micro_batch, found[OURS].micro_batch) == (2, 4)


def test_gains_are_over_the_best_of_what_they_name() -> None:
    found = only(rows())
    assert gain(found, ("stock-full",)) == pytest.approx(1.36)
    assert gain(found, MEGATRON) == pytest.approx(136 / 115)
    assert gain(found) == pytest.approx(136 / 124)
    assert gain({OURS: found[OURS]}) is None and gain({"full": found["full"]}) is None
    assert best_of(found, EXISTING) is found["adapipe+partition"]


def test_the_parts_sum_to_the_gain_in_their_order() -> None:
    found = only(rows())
    parts = steps(found)
    assert parts == pytest.approx((0.12, 0.08, 0.01, 0.10, 0.05))
    assert parts is not None and 1 + sum(parts) == pytest.approx(gain(found, ("stock-full",)))
    assert [(before, after) for _, before, after in STEPS][1:] == [
        (earlier, later) for (_, _, earlier), (_, _, later) in zip(STEPS, STEPS[1:], strict=False)
    ]
    assert mean_steps([parts, None, tuple(2 * part for part in parts)]) == pytest.approx([1.5 * part for part in parts])


def test_the_parts_are_those_of_one_micro_batch_and_one_place() -> None:
    other = rows(part=DEVICE, share=-1.0, micro_batch=8, pipeline_parallel=4)
    fast = [row("full", 140.0, micro_batch=1)]  # faster, but at another micro-batch than ours
    everything = [*rows(), *other, *fast]
    (case,) = cases(everything, BUDGET)
    assert steps_of(everything, case, cases(everything, BUDGET)[case]) == pytest.approx((0.12, 0.08, 0.01, 0.10, 0.05))
    assert "stock-full" not in at_batch(fast, case, 1)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"none": {"tokens_per_s": 136.0}, "adapipe": {"tokens_per_s": 136.0}}, "no recompute is needed"),
        ({"adapipe": {"tokens_per_s": 135.5, "exposed_share": 0.004}}, "little is left to hide"),
        ({"adapipe": {"tokens_per_s": 135.5}, OURS: {"hidden_share": 0.001}}, "few windows"),
        ({"adapipe": {"tokens_per_s": 135.5}}, "cheaper units"),
    ],
)
def test_where_there_is_no_gain_it_says_why(changed: dict[str, dict[str, float]], says: str) -> None:
    found = {arm: best for arm, best in only(rows()).items() if arm != "none" or "none" in changed}
    found = {arm: dataclasses.replace(best, **changed.get(arm, {})) for arm, best in found.items()}  # type: ignore[arg-type]
    assert says in why_none(found)
    assert why_none({"full": found["full"]}) == "ours does not fit"


def test_block_of_all_layers_is_stock_full_and_of_none_is_none() -> None:
    profile = matrix._profile(PLACE, 4, 2048)
    roomy = 1 << 60
    whole = run_arm(stock_blocks(profile, 24), "none", roomy).result
    stock, none = run_arm(profile, "stock-full", roomy).result, run_arm(profile, "none", roomy).result
    assert whole is not None and stock is not None and none is not None
    assert whole.iteration_us == pytest.approx(stock.iteration_us)
    free = stock_block(profile, roomy)
    assert free.iteration_us == pytest.approx(none.iteration_us)
    some = stock_block(profile, (needed_bytes(profile, "full") + needed_bytes(profile, "none")) // 2)
    assert none.iteration_us < some.iteration_us < stock.iteration_us
    with pytest.raises(InfeasibleError):
        stock_block(profile, 1 << 20)


def test_a_place_is_run_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    place = dataclasses.replace(PLACE, pipeline_parallel=1)
    monkeypatch.setattr(matrix, "MICRO_BATCHES", (8, 16))
    monkeypatch.setattr(matrix, "SHARES", (0.1,))
    monkeypatch.setattr(matrix, "SEQUENCES", ())
    found = run_place(place)
    device, tight = only([each for each in found if each.part == DEVICE]), only([r for r in found if r.part == BUDGET])
    # At micro-batch 16 only recompute fits: a larger micro-batch is what freed memory buys.
    assert device["none"].micro_batch == 8 and tight["full"].micro_batch == 16 and "none" not in tight
    assert set(ARMS) - set(device) == set() and "checkmate" in device
    over = gain(tight, ("stock-full",))
    assert over is not None and over > 1.3
    assert all(row.peak_bytes <= row.budget_bytes for row in found)
    # One stage has nothing to split.
    assert tight[OURS] == dataclasses.replace(tight["mix"], arm=OURS)
    assert rows_of(as_data(found, {"date": "d"})) == found
    text = page(found, {"date": "a day", "commit": "abc", "seconds": 1})
    assert "Every figure and every picture here is simulated" in text
    assert f"{over:.3f}" in text and "tools/reproduce_study.py --write" in text
    draw(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"study_arms.png", "study_memory.png", "study_parts.png"}
