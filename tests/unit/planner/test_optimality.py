"""opt against exhaustive search, mix and heu against opt, on random stages."""

import dataclasses

import pytest

from overlap_recompute.planner import InfeasibleError
from overlap_recompute.planner.problem import StageProblem, StageSolution
from overlap_recompute.planner.solve import Memory, Search, solve_stage
from overlap_recompute.planner.verify import find_faults
from tests.unit.planner.instances import brute_force_us, random_problem

EXACT = Search(limit_s=20.0, gap=0.0)
SHARES = {"mix": 0.01, "heu": 0.05}
INSTANCES = 300
"""benchmarks/planner_optimality.py has larger stages, where a few lie outside."""


def solved(problem: StageProblem, planner: str, memory: Memory, search: Search = EXACT) -> StageSolution | None:
    try:
        found = solve_stage(problem, planner, memory=memory, search=search)
    except InfeasibleError:
        return None
    assert not find_faults(problem, found), (planner, find_faults(problem, found))
    return found


@pytest.mark.parametrize("block", range(4))
def test_opt_finds_what_exhaustive_search_finds(block: int) -> None:
    for seed in range(1000 + 25 * block, 1000 + 25 * (block + 1)):
        problem = random_problem(seed, most_layers=2, most_units=3)
        found, best_us = solved(problem, "opt", Memory()), brute_force_us(problem)
        assert (found is None) == (best_us is None), seed
        if found is not None and best_us is not None:
            assert found.exposed_us == pytest.approx(best_us, rel=1e-5, abs=1e-5), seed
            assert found.bound_us <= best_us + 1e-5, seed


def test_heuristics_come_close_to_the_optimum() -> None:
    feasible = 0
    for seed in range(INSTANCES):
        problem, memory = random_problem(seed, most_layers=2 if seed % 4 else 3, most_units=3), Memory()
        best = solved(problem, "opt", memory)
        feasible += best is not None
        for planner, share in SHARES.items():
            found = solved(problem, planner, memory)
            assert (found is None) == (best is None), (planner, seed)
            if found is not None and best is not None:
                assert found.exposed_us >= best.bound_us - 1e-5, (planner, seed)
                assert found.exposed_us <= best.exposed_us * (1 + share) + 1e-5, (planner, seed)
    assert feasible > 0.8 * INSTANCES


def test_on_larger_stages_heuristics_stay_near_what_opt_finds() -> None:
    """Up to eight layers and eight units, opt with a short limit.

    Relative to the exposed time not every one is within 1 % (mix) and 5 % (heu): docs/planner.md has the count of 300.
    Relative to the time of the stage all of them are, and so is the sum of all in exposed time within 3 % and 10 %.
    """
    search, total_us = Search(limit_s=0.2, gap=0.01), {"opt": 0.0, "mix": 0.0, "heu": 0.0}
    missed = {"mix": 0, "heu": 0}
    for seed in range(5000, 5030):
        problem, memory = random_problem(seed, most_layers=8, most_units=8), Memory()
        found = {planner: solved(problem, planner, memory, search) for planner in total_us}
        assert len({solution is None for solution in found.values()}) == 1, seed
        best = found["opt"]
        if best is None:
            continue
        work_us = sum(
            step.duration_us
            for kind in (problem.kinds[layer.kind] for layer in problem.layers)
            for step in (*kind.forward, *kind.backward)
        )
        for planner, solution in found.items():
            assert solution is not None and solution.exposed_us >= best.bound_us - 1e-3, (planner, seed)
            total_us[planner] += solution.exposed_us
        for planner, share in SHARES.items():
            solution = found[planner]
            assert solution is not None
            assert solution.exposed_us - best.exposed_us <= share * work_us, (planner, seed)
            missed[planner] += solution.exposed_us > best.exposed_us * (1 + share) + 1.0
    assert total_us["opt"] <= total_us["mix"] + 1e-3
    assert total_us["mix"] <= 1.03 * total_us["opt"]
    assert total_us["heu"] <= 1.10 * total_us["opt"]
    assert missed["mix"] <= 6 and missed["heu"] <= 6, missed


@pytest.mark.parametrize("seed", range(2000, 2010))
def test_larger_stages_are_solved_without_a_fault(seed: int) -> None:
    memory = Memory()
    problem = random_problem(
        seed, most_layers=6 if seed % 2 else 8, most_units=8 if seed % 2 else 4, chunks=1 + seed % 3 // 2
    )
    heu, mix = solved(problem, "heu", memory), solved(problem, "mix", memory)
    assert (heu is None) == (mix is None)
    if heu is not None and mix is not None:
        assert mix.exposed_us <= heu.exposed_us + 1e-6


@pytest.mark.parametrize("planner", ["heu", "mix", "adapipe"])
def test_with_one_memory_more_bytes_never_make_a_stage_slower(planner: str) -> None:
    for seed in range(3000, 3004):
        problem, memory = random_problem(seed, most_layers=4, most_units=4), Memory()
        last_us = float("inf")
        for step in range(6):
            budget_bytes = int(problem.budget_bytes * (0.6 + 0.2 * step))
            found = solved(dataclasses.replace(problem, budget_bytes=budget_bytes), planner, memory)
            if found is None:
                assert last_us == float("inf")
                continue
            assert found.exposed_us <= last_us + 1e-6
            last_us = found.exposed_us


def test_identical_problems_are_solved_once() -> None:
    problem, memory = random_problem(3), Memory()
    one = solve_stage(problem, "mix", memory=memory)
    two = solve_stage(dataclasses.replace(problem, stage=5), "mix", memory=memory)
    assert one.dropped is two.dropped
