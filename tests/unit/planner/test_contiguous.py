"""The search over contiguous splits against all splits there are."""

import itertools
import random
from collections.abc import Iterator

import pytest

from overlap_recompute.planner.contiguous import best_counts, greedy_counts, iteration_us


def _splits(layers: int, stages: int) -> Iterator[tuple[int, ...]]:
    for counts in itertools.product(range(layers + 1), repeat=stages):
        if sum(counts) == layers:
            yield counts


@pytest.mark.parametrize("seed", range(60))
def test_equals_brute_force(seed: int) -> None:
    chance = random.Random(seed)
    stages, layers, microbatches = chance.randint(1, 4), chance.randint(1, 7), chance.randint(1, 12)
    costs = [chance.uniform(1.0, 4.0) for _ in range(layers)]
    ends = [chance.choice([0.0, 0.0, chance.uniform(0, 6)]) for _ in range(stages)]
    room = [chance.choice([layers, chance.randint(0, layers)]) for _ in range(stages)]
    outer = {0, stages - 1} if chance.random() < 0.5 else set()

    def stage_time(stage: int, first: int, count: int) -> float | None:
        return None if count > room[stage] else ends[stage] + sum(costs[first : first + count])

    expected = float("inf")
    for counts in _splits(layers, stages):
        firsts = itertools.accumulate((0, *counts[:-1]))
        times = [stage_time(stage, first, n) for stage, (first, n) in enumerate(zip(firsts, counts, strict=True))]
        allowed = all(n > 0 or stage in outer for stage, n in enumerate(counts))
        if allowed and all(time is not None for time in times):
            expected = min(expected, iteration_us([time for time in times if time is not None], microbatches))
    found = best_counts(layers, stages, microbatches, stage_time, may_be_empty=outer.__contains__)
    if expected == float("inf"):
        assert found == []
    else:
        assert found[0].objective_us == pytest.approx(expected, rel=1e-12)
        assert sum(found[0].counts) == layers


def test_a_heavy_head_takes_layers_from_its_stage() -> None:
    def stage_time(stage: int, first: int, count: int) -> float:
        return 3.0 * count + (6.0 if stage == 3 else 0.0)

    found = best_counts(16, 4, 8, stage_time, may_be_empty=lambda stage: False, keep=3)
    # The slowest stage takes 15 in any case; the sum is the same for all of these.
    assert max(stage_time(stage, 0, n) for stage, n in enumerate(found[0].counts)) == 15.0
    assert found[0].counts[3] in (2, 3) and found == sorted(found)


def test_the_greedy_rule_moves_layers_one_by_one() -> None:
    def stage_time(stage: int, first: int, count: int) -> float:
        return 1.0 * count + (2.0 if stage == 1 else 0.0)

    assert greedy_counts((4, 4), stage_time, lambda stage: False) == (5, 3)
    assert greedy_counts((5, 3), stage_time, lambda stage: False) == (5, 3)
