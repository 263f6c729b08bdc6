"""Simulated annealing over policies and windows together, for what is still exposed on a stage.

Where memory is tight, a better solution differs from a good one in many places at once: a layer keeps more, another one
less, and replays stand later or closer so that what they hold ahead of need comes in turns. Local search from choices
to packings does not find these: packed in another order the neighbours look no better. Here a move changes a replay's
window, the policies of one or two layers, the places of two replays, or all that some layers do (`layer_moves.py`), and
is tried in some microseconds.

Too much memory is allowed and costs: the price of a byte rises while states fit seldom, and falls while they fit often,
so that the search goes along the edge of the budget. It cools down twice, the second time from the best solution and
from half the heat. Work is counted in moves, and random numbers come from a generator of fixed seed: the same problem
gets the same plan wherever it is made.
"""

import math
from collections.abc import Callable
from random import Random

from overlap_recompute.planner.layer_moves import repeat_layers
from overlap_recompute.planner.moves import change_policies, exchange_replays, move_replay
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.replay_state import State
from overlap_recompute.planner.workspace import Workspace, assemble

MOVES, PIPELINE_MOVES = 140_000, 36_000
"""Of annealing, for a stage that is solved by itself, and for all stages of a pipeline together."""
LEAST_MOVES = 4000
"""Fewer are not worth the start."""
_HOT, _COLD = (0.3, 0.15), 0.02
"""Temperatures from which it cools down, and to which, relative to the mean time of a replay."""
_BLOCK = 50
"""Moves between two looks at the price of memory."""
_SELDOM, _OFTEN = 0.1, 0.3
"""Share of states that fit below which it rises, and above which it falls."""
_RISE, _FALL = 1.1, 1.1
_PRICE = 4.0
"""At the start: mean replays for the bytes of a mean replay."""
_WINDOW, _ONE, _TWO, _EXCHANGE = 0.42, 0.57, 0.72, 0.82
"""Share of moves that change a window, those and the policy of one layer, of two, and exchanges; the rest: layers."""
_LEAST_US = 1e-6


def moves_of(stages: int) -> int:
    """Of annealing, for each stage of a pipeline."""
    return MOVES if stages == 1 else PIPELINE_MOVES // stages


def anneal(exact: Callable[[], Workspace], start: StageSolution, moves: int, bound_us: float) -> StageSolution:
    """The best solution found, no worse than `start`.

    Args:
        exact: the problem with all policies that may be part of an optimum.
        start: where to begin.
        moves: how long to search.
        bound_us: no solution exposes less, or hardly any.
    """
    if moves < LEAST_MOVES or start.exposed_us <= bound_us + _LEAST_US:
        return start
    workspace = exact()
    state, generator = State(workspace, start), Random(1)
    random, best_us = generator.random, start.exposed_us
    best: tuple[list[int], list[list[int]]] | None = None
    (time_us, price), fitting, per_round = _scales(workspace, state), 0, -(-moves // len(_HOT))
    for move in range(moves):
        if move % _BLOCK == 0:
            if move:
                price *= _RISE if fitting < _SELDOM * _BLOCK else 1 / _FALL if fitting > _OFTEN * _BLOCK else 1.0
            number, done = divmod(move, per_round)
            if done < _BLOCK and best is not None:
                state.restore(*best)
            fitting, cost = 0, state.exposed_us + price * max(0, state.over_bytes)
            heat = time_us * _HOT[number] * (_COLD / _HOT[number]) ** (done / per_round)
        draw = random()
        if draw < _WINDOW:
            changes = move_replay(state, random)
        elif draw < _TWO:
            changes = change_policies(state, random, 1 if draw < _ONE else 2)
        elif draw < _EXCHANGE:
            changes = exchange_replays(state, random)
        else:
            changes = repeat_layers(state, random)
        if changes:
            limit_us = cost - heat * math.log(1.0 - random())
            trial = state.trial(changes, limit_us, price)
            if trial is not None:
                state.take(trial)
                cost = trial.exposed_us + price * max(0, trial.over_bytes)
                if trial.over_bytes <= 0 and trial.exposed_us < best_us - _LEAST_US:
                    best_us, best = trial.exposed_us, (state.policies[:], state.windows[:])
                    if best_us <= bound_us + _LEAST_US:
                        break
        fitting += state.over_bytes <= 0
    if best is None:
        return start
    state.restore(*best)
    return assemble(workspace, *state.decisions())


def _scales(workspace: Workspace, state: State) -> tuple[float, float]:
    """Mean time of a replay, and what a byte costs at the start."""
    kinds = list(dict.fromkeys(state.kinds))
    times_us = [time_us for kind in kinds for time_us in kind.times_us]
    everything = [kind.row(kind.table.nearest(-1)) for kind in kinds]
    sizes = [size for row in everything for size in row.nbytes if size]
    time_us = max(sum(times_us) / max(1, len(times_us)), _LEAST_US)
    in_flight = [workspace.problem.chunks[layer.chunk].in_flight for layer in workspace.problem.layers]
    mean_bytes = max(1.0, sum(sizes) / max(1, len(sizes))) * sum(in_flight) / len(in_flight)
    return time_us, _PRICE * time_us / mean_bytes
