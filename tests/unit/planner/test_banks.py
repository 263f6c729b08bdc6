"""The bound of opt: windows between two deadlines as one, memory without a variable for what is prefetched."""

import json
import pathlib
import threading

import numpy as np
import pytest

from benchmarks.planner_optimality import transformer_stage
from overlap_recompute.planner import milp_columns
from overlap_recompute.planner.banks import with_banks
from overlap_recompute.planner.highs import OPTIMAL, OUT_OF_TIME, Answer, Call, solve_here
from overlap_recompute.planner.milp import Program, build_program, call_of
from overlap_recompute.planner.opt import Leftover, improve
from overlap_recompute.planner.patterns import patterns_of, with_patterns
from overlap_recompute.planner.problem import StageProblem
from overlap_recompute.planner.progress import Progress
from overlap_recompute.planner.solve import Memory, Search, exact_workspace, solve_stage
from overlap_recompute.planner.verify import find_faults
from overlap_recompute.planner.workspace import Workspace
from tests.unit.planner.instances import brute_force_us, random_problem

OPTIMA = pathlib.Path(__file__).resolve().parents[3] / "benchmarks" / "planner_optima.json"
EPSILON_US = 1e-3


def least_us(program: Program) -> float | None:
    """The optimum of a program, less what the solver tolerates; None if it has no solution."""
    answer = solve_here(call_of(program, limit_s=20.0, gap=0.0))
    if answer.values is None:
        return None
    assert answer.status == OPTIMAL and answer.bound is not None
    return answer.bound * program.scale_us


def workspace_of(problem: StageProblem) -> Workspace:
    return exact_workspace(problem, Memory())


def relaxation_of(workspace: Workspace) -> Program:
    banks = with_banks(workspace)
    return with_patterns(build_program(banks.workspace, banks.most_us), banks, workspace.lengths)


def test_windows_between_two_deadlines_are_one() -> None:
    banks = with_banks(workspace_of(transformer_stage(0.3, 60.0, llama=False)))
    problem = banks.workspace.problem
    assert banks.bank_of == (0,) * 12 + tuple(range(1, 13)), "the forward pass, and each window of backward"
    assert problem.windows[0].length_us == pytest.approx(12 * banks.most_us[0])
    assert problem.layers[-1].deadlines == (2, 2, 2, 1, 1, 1) and problem.layers[0].own_window == 11
    assert banks.is_smaller


def test_the_windows_of_two_chunks_are_never_in_one_bank() -> None:
    for seed in range(40, 60):
        workspace = workspace_of(random_problem(seed, chunks=2))
        banks = with_banks(workspace)
        spans = [banks.workspace.span(number) for number in range(2)]
        for window, bank in enumerate(banks.bank_of):
            chunk = next(number for number in range(2) if window in range(*workspace.span(number)))
            assert bank in range(*spans[chunk]), seed


def test_no_solution_is_below_the_bound_of_the_banks() -> None:
    smaller = 0
    for seed in range(1100, 1130):
        problem = random_problem(seed, most_layers=2, most_units=3, chunks=1 + seed % 3 // 2)
        workspace, best_us = workspace_of(problem), brute_force_us(problem)
        banks = with_banks(workspace)
        bank_us = least_us(build_program(banks.workspace, banks.most_us))
        pattern_us, window_us = least_us(relaxation_of(workspace)), least_us(build_program(workspace))
        smaller += banks.is_smaller
        if best_us is not None:
            assert bank_us is not None and pattern_us is not None, seed
            assert bank_us <= pattern_us + EPSILON_US and pattern_us <= best_us + EPSILON_US, seed
            assert window_us == pytest.approx(best_us, abs=EPSILON_US), seed
    assert smaller > 20


def test_no_known_optimum_is_below_the_bound_of_the_banks() -> None:
    rows = [row for row in json.loads(OPTIMA.read_text()) if row["exposed_us"]]
    for row in rows[::40]:
        program = relaxation_of(workspace_of(random_problem(row["seed"], most_layers=8, most_units=8)))
        answer = solve_here(call_of(program, limit_s=1.0, gap=0.0))
        bound_us = (answer.bound or 0.0) * program.scale_us
        assert bound_us <= row["exposed_us"] + EPSILON_US, row["seed"]


def test_layers_whose_prices_are_sums_need_no_column_for_each_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = with_banks(workspace_of(transformer_stage(0.3, 250.0, llama=True, layers=16))).workspace
    assert not build_program(workspace).columns.policy
    without_us = least_us(build_program(workspace))
    monkeypatch.setattr(milp_columns, "is_sum", lambda *_: False)
    assert build_program(workspace).columns.policy
    assert without_us == pytest.approx(least_us(build_program(workspace)), rel=1e-5) and without_us


def test_prices_that_are_no_sums_keep_their_columns() -> None:
    for seed in range(30):
        workspace = workspace_of(random_problem(seed, most_units=4))
        columns = build_program(workspace).columns
        for index, layer in enumerate(workspace.problem.layers):
            table = workspace.table(index)
            if not (table.masks == table.work).all():
                assert (index, len(table.masks) - 1) in columns.policy, (seed, layer)


def test_patterns_are_what_fits_and_what_just_fills() -> None:
    found = patterns_of(100.0, (60.0, 30.0), (2, 3), 20)
    assert found is not None
    assert sorted(found) == [
        ((0, 1), 30.0), ((0, 2), 60.0), ((0, 3), 90.0), ((1, 0), 60.0), ((1, 1), 90.0), ((1, 2), 100.0),
        ((2, 0), 100.0),
    ]  # fmt: skip
    assert patterns_of(100.0, (60.0, 30.0), (2, 3), 3) is None


def test_patterns_say_more_where_units_are_longer_than_windows() -> None:
    workspace = workspace_of(transformer_stage(0.1, 250.0, llama=False))
    banks = with_banks(workspace)
    bank_us = least_us(build_program(banks.workspace, banks.most_us))
    pattern_us = least_us(relaxation_of(workspace))
    assert bank_us is not None and pattern_us is not None and pattern_us > 1.003 * bank_us


def test_a_bank_with_too_many_patterns_stays_one_window() -> None:
    workspace = workspace_of(transformer_stage(0.3, 60.0, llama=True))
    banks = with_banks(workspace)
    program = build_program(banks.workspace, banks.most_us)
    assert len(with_patterns(program, banks, workspace.lengths).objective) == len(program.objective)


@pytest.mark.parametrize(("llama", "link", "share", "stage"), [(True, 60.0, 0.3, 3), (False, 250.0, 0.1, 3)])
def test_one_per_cent_is_proven_of_a_stage_of_48_layers(llama: bool, link: float, share: float, stage: int) -> None:
    problem = transformer_stage(share, link, llama=llama, stage=stage)
    found = solve_stage(problem, "opt", search=Search(limit_s=100.0, moves=4000))
    assert not find_faults(problem, found)
    assert found.exposed_us > 100.0 and found.bound_us >= 0.99 * found.exposed_us


def test_what_a_search_leaves_of_its_time_is_for_the_next_one() -> None:
    seen: list[float] = []

    def out_of_time(call: Call) -> Answer:
        seen.append(call.limit_s)
        return Answer(OUT_OF_TIME, None, None)

    hard = transformer_stage(0.3, 60.0, llama=True, stage=7)
    easy = transformer_stage(0.5, 20.0, llama=False)
    leftover = Leftover()
    search = Search(limit_s=60.0, moves=0, solver=out_of_time, leftover=leftover)
    assert solve_stage(easy, "opt", search=search).exposed_us == 0 and not seen
    assert 0 < leftover.seconds <= 60.0
    stop = threading.Event()
    stop.set()
    leftover.seconds = 100.0
    assert solve_stage(hard, "opt", search=Search(limit_s=5.0, moves=0, leftover=leftover, stop=stop)).bound_us == 0
    assert leftover.seconds > 100.0, "a search that was stopped took nothing"


def test_slices_get_longer_and_the_last_one_takes_what_is_left() -> None:
    clock, seen, told = [0.0], [], []

    def out_of_time(call: Call) -> Answer:
        seen.append(call.limit_s)
        clock[0] += call.limit_s
        return Answer(OUT_OF_TIME, None, 0.0)

    workspace = workspace_of(transformer_stage(0.3, 60.0, llama=True, stage=7))
    start = solve_stage(workspace.problem, "heu", search=Search(moves=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("overlap_recompute.planner.opt.time.monotonic", lambda: clock[0])
        found = improve(workspace, start, limit_s=20.0, solver=out_of_time, report=told.append)
    assert found is not None and found.exposed_us == start.exposed_us
    assert np.allclose(seen, [1.0, 6.0, 13.0]) and all(isinstance(each, Progress) for each in told)
    assert len(told) == len(seen) + 1
