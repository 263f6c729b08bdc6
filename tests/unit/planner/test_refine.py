"""The last look by integer programming at a stage that is solved by itself."""

import dataclasses
import json
import pathlib

import pytest

from overlap_recompute.planner import make_plan
from overlap_recompute.planner import pipeline as pipeline_module
from overlap_recompute.planner.highs import Answer, Call, SolverError, missing_scipy, solve_here
from overlap_recompute.planner.problem import StageProblem, StageSolution
from overlap_recompute.planner.refine import LIMIT_S, MOST_PLACES, NODES, refine
from overlap_recompute.planner.solve import GAPS, Memory, Search, exact_workspace, solve_stage
from overlap_recompute.planner.verify import find_faults
from tests.unit.plan.samples import sample_profile
from tests.unit.planner.instances import random_problem

SEED = 10067
"""heu without annealing exposes more than the proven optimum."""


@pytest.fixture(scope="module")
def problem() -> StageProblem:
    return random_problem(SEED, most_layers=8, most_units=8)


@pytest.fixture(scope="module")
def start(problem: StageProblem) -> StageSolution:
    return solve_stage(problem, "heu", memory=Memory(), search=Search(moves=0))


def optimum_us() -> float:
    path = pathlib.Path(__file__).resolve().parents[3] / "benchmarks" / "planner_optima.json"
    return float({row["seed"]: row for row in json.loads(path.read_text())}[SEED]["exposed_us"])


def refuse(call: Call) -> Answer:
    raise AssertionError("a search that nobody needs")


def test_a_solution_that_is_far_off_comes_close_to_the_optimum(problem: StageProblem, start: StageSolution) -> None:
    calls: list[Call] = []

    def solver(call: Call) -> Answer:
        calls.append(call)
        return solve_here(call)

    assert start.exposed_us > 1.02 * optimum_us()
    found = refine(exact_workspace(problem, Memory()), start, GAPS["mix"], solver, limit_s=90.0)
    assert not find_faults(problem, found)
    assert optimum_us() - 1e-3 <= found.exposed_us <= 1.01 * optimum_us()
    assert calls and all(call.nodes == NODES for call in calls), "bounded by what is the same on every machine"


def test_what_is_proven_to_be_good_enough_is_left_alone(problem: StageProblem, start: StageSolution) -> None:
    proven = dataclasses.replace(start, bound_us=0.995 * start.exposed_us)
    assert refine(exact_workspace(problem, Memory()), proven, GAPS["mix"], refuse) is proven


def test_a_large_stage_is_left_alone(problem: StageProblem, start: StageSolution) -> None:
    workspace = exact_workspace(problem, Memory())
    units = sum(len(workspace.table(layer).names) for layer in range(len(problem.layers)))
    workspace.lengths *= MOST_PLACES // (units * len(workspace.lengths)) + 1
    assert refine(workspace, start, GAPS["mix"], refuse) is start


def test_without_a_solver_the_solution_stays(problem: StageProblem, start: StageSolution) -> None:
    def missing(call: Call) -> Answer:
        raise missing_scipy()

    assert refine(exact_workspace(problem, Memory()), start, GAPS["mix"], missing) is start
    with pytest.raises(SolverError):
        missing(None)  # type: ignore[arg-type]


def test_stages_of_a_pipeline_are_not_refined(problem: StageProblem) -> None:
    for planner in GAPS:
        solve_stage(problem, planner, memory=Memory(), search=Search(moves=4000, solver=refuse))


def test_a_plan_by_heu_gets_no_last_look_and_one_by_mix_does(
    problem: StageProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def solve(problem: StageProblem, planner: str, *, memory: Memory, search: Search) -> StageSolution:
        asked.append(search.last_look_s)
        return solve_stage(problem, planner, memory=memory, search=search)

    monkeypatch.setattr(pipeline_module, "solve_stage", solve)
    profile = sample_profile(((3,),))
    for planner, limit_s in (("heu", 0.0), ("mix", LIMIT_S)):
        asked.clear()
        make_plan(profile, planner, 1 << 40)
        assert asked and set(asked) == {limit_s}
    unlooked = solve_stage(problem, "heu", memory=Memory(), search=Search(last_look_s=0.0, solver=refuse))
    assert unlooked.exposed_us >= optimum_us() - 1e-3
