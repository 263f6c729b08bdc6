"""Moves of whole layers: states keep all rules, and their sums are those of the solutions that they stand for."""

import dataclasses
import math
from random import Random

import pytest

from overlap_recompute.planner.layer_moves import repeat_layers
from overlap_recompute.planner.moves import change_policies, move_replay
from overlap_recompute.planner.replay_state import State
from overlap_recompute.planner.solve import Memory, Search, exact_workspace, solve_stage
from overlap_recompute.planner.verify import find_faults
from overlap_recompute.planner.workspace import Workspace, assemble
from tests.unit.planner.instances import random_problem

ROOMY_BYTES = 1 << 40


def walker(seed: int, chunks: int) -> tuple[Workspace, State]:
    """A stage with memory for everything, so that no state has too little, from what heu finds for its real budget."""
    problem, memory = random_problem(seed, most_layers=6, most_units=5, chunks=chunks), Memory()
    tight = dataclasses.replace(problem, budget_bytes=problem.budget_bytes * 2)
    start = solve_stage(tight, "heu", memory=memory, search=Search(moves=0))
    workspace = exact_workspace(dataclasses.replace(problem, budget_bytes=ROOMY_BYTES), memory)
    return workspace, State(workspace, start)


@pytest.mark.parametrize(("seed", "chunks"), [(3001, 1), (3004, 1), (3007, 1), (3011, 2), (3012, 2)])
def test_layers_that_repeat_others_keep_all_rules(seed: int, chunks: int) -> None:
    workspace, state = walker(seed, chunks)
    random, repeated = Random(seed).random, 0
    for step in range(400):
        draw = random()
        changes = repeat_layers(state, random) if draw < 0.4 else []
        repeated += bool(changes)
        if draw >= 0.4:
            changes = move_replay(state, random) if draw < 0.8 else change_policies(state, random, 2)
        if changes:
            trial = state.trial(changes, math.inf, 0.0)
            assert trial is not None
            state.take(trial)
        if step % 20 == 0:
            found = assemble(workspace, *state.decisions())
            assert not find_faults(workspace.problem, found), step
            assert state.exposed_us == pytest.approx(found.exposed_us, abs=1e-6), step
            assert state.over_bytes == found.total_bytes - ROOMY_BYTES, step
    assert repeated > 20 or len(workspace.problem.layers) == 1


def test_a_copied_layer_does_the_same_as_far_ahead_of_its_need() -> None:
    workspace, state = walker(3004, 1)
    random, copied = Random(5).random, 0
    for _ in range(200):
        before = [list(windows) for windows in state.windows]
        changes = repeat_layers(state, random)
        if len(changes) == 1:
            target, policy, windows = changes[0]
            first = state.first[target]
            matches = [
                all(
                    here - state.own[target] == there - state.own[source] or here in (first, state.outside)
                    for here, there in zip(windows, before[source], strict=True)
                )
                for source, other in enumerate(state.policies)
                if source != target and other == policy
            ]
            assert any(matches)
            copied += 1
        trial = state.trial(changes or move_replay(state, random), math.inf, 0.0)
        assert trial is not None
        state.take(trial)
    assert copied > 20


def test_a_state_goes_back_to_what_it_was() -> None:
    _, state = walker(3007, 1)
    random = Random(7).random
    policies, windows, exposed_us, over_bytes = state.policies[:], state.windows[:], state.exposed_us, state.over_bytes
    for _ in range(100):
        trial = state.trial(change_policies(state, random, 1), math.inf, 0.0)
        assert trial is not None
        state.take(trial)
    state.restore(policies, windows)
    assert state.exposed_us == pytest.approx(exposed_us, abs=1e-6) and state.over_bytes == over_bytes
    assert state.policies == policies and state.windows == windows
