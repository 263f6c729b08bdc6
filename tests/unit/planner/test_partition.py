"""The partition against all splits there are, each simulated; heavy ends; chunks; memory that only some splits meet."""

import dataclasses
import itertools
import random
from collections.abc import Iterator

import pytest

from overlap_recompute.plan.profile import COMPUTE, EndCost, PassStep, Profile
from overlap_recompute.plan.split import Split
from overlap_recompute.planner import InfeasibleError, make_plan
from overlap_recompute.planner.partition import best_split, greedy_split, partition
from tests.unit.plan.samples import sample_profile


def _profile(layers: int, stages: int, *, head_us: float, embedding_us: float, microbatches: int) -> Profile:
    split = ((1,),) * (stages - 1) + ((layers - stages + 1,),)
    profile = sample_profile(split)

    def end(old: EndCost, us: float) -> EndCost:
        step = PassStep(kind=COMPUTE, name="end", duration_us=us)
        return dataclasses.replace(old, forward=(step,), backward=(dataclasses.replace(step, duration_us=2 * us),))

    return dataclasses.replace(
        profile,
        embedding=end(profile.embedding, embedding_us),
        head=end(profile.head, head_us),
        layout=dataclasses.replace(profile.layout, microbatches=microbatches),
    )


def _splits(layers: int, stages: int) -> Iterator[Split]:
    for counts in itertools.product(range(layers + 1), repeat=stages):
        if sum(counts) == layers and all(counts[1:-1]):
            yield tuple((count,) for count in counts)


def _time_us(profile: Profile, split: Split, budget_bytes: int) -> float:
    try:
        return make_plan(profile, "heu", budget_bytes, split=split).predicted_iteration_us
    except InfeasibleError:
        return float("inf")


@pytest.mark.parametrize("seed", range(8))
def test_no_split_is_simulated_faster(seed: int) -> None:
    chance = random.Random(seed)
    stages, layers = chance.choice([(2, 5), (2, 7), (3, 6)])
    profile = _profile(
        layers, stages, head_us=chance.choice([0.0, 150.0, 400.0]), embedding_us=chance.choice([0.0, 200.0]),
        microbatches=chance.choice([4, 8, 16]),
    )  # fmt: skip
    free = make_plan(profile, "none", 1 << 40)
    most = max(stage.predicted.memory.total_bytes for stage in free.stages)
    budget_bytes = int(most * chance.uniform(0.8, 1.0))
    times = {split: _time_us(profile, split, budget_bytes) for split in _splits(layers, stages)}
    if min(times.values()) == float("inf"):
        with pytest.raises(InfeasibleError):
            partition(profile, budget_bytes)
        return
    found = partition(profile, budget_bytes)
    assert found.iteration_us == times[found.split]
    assert found.iteration_us == pytest.approx(min(times.values()), rel=1e-9)


def test_a_heavy_head_gives_layers_away() -> None:
    profile = _profile(12, 3, head_us=300.0, embedding_us=0.0, microbatches=16)
    split = best_split(profile, 1 << 40)
    counts = [sum(row) for row in split]
    assert counts[2] < counts[0] and sum(counts) == 12
    greedy = greedy_split(profile, 1 << 40)
    best_us, greedy_us = _time_us(profile, split, 1 << 40), _time_us(profile, greedy, 1 << 40)
    assert best_us <= greedy_us < _time_us(profile, ((4,), (4,), (4,)), 1 << 40)


def test_chunks_keep_their_number() -> None:
    profile = _profile(8, 2, head_us=100.0, embedding_us=0.0, microbatches=8)
    split = best_split(profile, 1 << 40, chunks=2)
    assert {len(row) for row in split} == {2} and sum(map(sum, split)) == 8


def test_a_budget_for_no_split_says_which_stage_is_short() -> None:
    with pytest.raises(InfeasibleError, match="stage 0"):
        partition(_profile(6, 2, head_us=0.0, embedding_us=0.0, microbatches=4), 1000)
