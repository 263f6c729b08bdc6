"""What the planner remembers from one call to the next."""

import dataclasses

import pytest

from overlap_recompute.planner import solve
from overlap_recompute.planner.problem import StageProblem, StageSolution
from overlap_recompute.planner.solve import Memory, Search, solve_stage
from tests.unit.planner.instances import random_problem


def test_a_solution_for_less_memory_is_one_however_long_the_other_search_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pipeline gives a stage more time where fewer stages expose something, and that changes with the budget."""
    memory, problem, asked = Memory(), random_problem(3), []
    first = solve_stage(problem, "mix", memory=memory, search=Search(limit_s=1.0, moves=0))

    def nothing(problem: StageProblem, memory: Memory, search: Search) -> StageSolution | None:
        asked.append((problem.budget_bytes, search.limit_s))
        return None

    monkeypatch.setattr(solve, "_BY_STAGE", {"mix": nothing})
    more = dataclasses.replace(problem, budget_bytes=problem.budget_bytes + 1)
    for limit_s in (4.0, 2.0):
        found = solve_stage(more, "mix", memory=memory, search=Search(limit_s=limit_s, moves=0))
        assert (found.dropped, found.fills) == (first.dropped, first.fills)
    assert asked == [(more.budget_bytes, 4.0)], "a shorter search of the same problem is known"
    solve_stage(problem, "mix", memory=memory, search=Search(limit_s=4.0, moves=0))
    assert asked[1:] == [(problem.budget_bytes, 4.0)], "a longer one is not"
