"""opt against exhaustive search, mix and heu against opt, on random stages."""

import dataclasses
import json
import pathlib

import pytest

from overlap_recompute.planner import InfeasibleError
from overlap_recompute.planner.problem import StageProblem, StageSolution
from overlap_recompute.planner.solve import MOVES, Memory, Search, solve_stage
from overlap_recompute.planner.verify import find_faults
from tests.unit.planner.instances import brute_force_us, random_problem

PATIENT_S = 90.0
"""Nodes bound a last look, and a proof ends opt: what is found does not depend on the machine's load."""
EXACT = Search(limit_s=PATIENT_S, gap=0.0, moves=MOVES // 10, last_look_s=PATIENT_S)
UNHEATED = Search(limit_s=PATIENT_S, gap=0.0, moves=0, last_look_s=PATIENT_S)
"""Without annealing, which the smallest stages need on one of hundreds."""
SHARES = {"mix": 0.01, "heu": 0.05}
INSTANCES = 300
"""benchmarks/planner_optimality.py has larger stages, where a few lie outside."""
OPTIMA = pathlib.Path(__file__).resolve().parents[3] / "benchmarks" / "planner_optima.json"
LARGER = (10034, 10067, 10085, 10022, 10101, 10132, 10139, 10214, 10216, 10222, 10269, 10344)
MOST_MISSED = 2
REPEATING = (10137, 10166, 10202, 10337)
"""Missed until there were moves of whole layers, with more moves as well."""
HARD = (10234, 10245, 10333)
"""Which annealing misses all the same."""


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
        found, best_us = solved(problem, "opt", Memory(), UNHEATED), brute_force_us(problem)
        assert (found is None) == (best_us is None), seed
        if found is not None and best_us is not None:
            assert found.exposed_us == pytest.approx(best_us, rel=1e-5, abs=1e-5), seed
            assert found.bound_us <= best_us + 1e-5, seed


def test_heuristics_come_close_to_the_optimum() -> None:
    feasible = 0
    for seed in range(INSTANCES):
        problem, memory = random_problem(seed, most_layers=2 if seed % 4 else 3, most_units=3), Memory()
        best = solved(problem, "opt", memory, UNHEATED)
        feasible += best is not None
        for planner, share in SHARES.items():
            found = solved(problem, planner, memory, UNHEATED)
            assert (found is None) == (best is None), (planner, seed)
            if found is not None and best is not None:
                assert found.exposed_us >= best.bound_us - 1e-5, (planner, seed)
                assert found.exposed_us <= best.exposed_us * (1 + share) + 1e-5, (planner, seed)
    assert feasible > 0.8 * INSTANCES


@pytest.mark.parametrize("planner", SHARES)
def test_annealing_finds_on_the_smallest_stages_what_neighbours_do_not(planner: str) -> None:
    problem = random_problem(20250)
    best, found = (solved(problem, planner, Memory(), Search(moves=moves)) for moves in (0, MOVES))
    assert best is not None and found is not None
    assert best.exposed_us == pytest.approx(100.0) and found.exposed_us == pytest.approx(83.0)


def test_on_larger_stages_heuristics_stay_near_the_proven_optimum() -> None:
    """Up to eight layers and eight units, with a third of the moves that a stage alone is annealed for by default.

    Optima were proven before, in seconds to minutes each: benchmarks/planner_optimality.py --search. All of these
    stages were missed by more than 1 % (mix) or 5 % (heu) before there was annealing; docs/planner.md has the count of
    all 345 of the file.
    """
    optima = {row["seed"]: row for row in json.loads(OPTIMA.read_text())}
    search, missed = Search(moves=MOVES // 3, last_look_s=PATIENT_S), dict.fromkeys(SHARES, 0)
    total_us = dict.fromkeys(("opt", *SHARES), 0.0)
    for seed in LARGER:
        problem, optimum, memory = random_problem(seed, most_layers=8, most_units=8), optima[seed], Memory()
        assert optimum["budget_bytes"] == problem.budget_bytes, "other stages than those of the file"
        total_us["opt"] += optimum["exposed_us"]
        for planner, share in SHARES.items():
            found = solved(problem, planner, memory, search)
            assert found is not None and found.exposed_us >= optimum["bound_us"] - 1e-3, (planner, seed)
            total_us[planner] += found.exposed_us
            missed[planner] += found.exposed_us > optimum["exposed_us"] * (1 + share) + 1.0
    assert missed["mix"] <= MOST_MISSED and missed["heu"] <= MOST_MISSED, missed
    assert total_us["mix"] <= 1.01 * total_us["opt"] and total_us["heu"] <= 1.02 * total_us["opt"], total_us


@pytest.mark.parametrize("seed", REPEATING)
def test_stages_whose_layers_repeat_each_other_are_solved(seed: int) -> None:
    optimum = {row["seed"]: row for row in json.loads(OPTIMA.read_text())}[seed]
    problem = random_problem(seed, most_layers=8, most_units=8)
    found = solved(problem, "mix", Memory(), Search(moves=MOVES // 2, last_look_s=PATIENT_S))
    assert found is not None and found.exposed_us <= optimum["exposed_us"] * 1.01 + 1.0


@pytest.mark.parametrize("seed", HARD)
def test_what_annealing_misses_on_a_stage_alone_is_refined(seed: int) -> None:
    optimum = {row["seed"]: row for row in json.loads(OPTIMA.read_text())}[seed]
    problem, memory = random_problem(seed, most_layers=8, most_units=8), Memory()
    for planner, share in SHARES.items():
        found = solved(problem, planner, memory, Search(last_look_s=PATIENT_S))
        assert found is not None and found.exposed_us <= optimum["exposed_us"] * (1 + share) + 1.0, planner


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
