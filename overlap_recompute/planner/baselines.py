"""What others do, as plans in the same format: which units they drop, priced with the same windows and memory.

    none        nothing is dropped
    full        everything that can be dropped
    uniform     whole layers, spread evenly over each chunk: the fewest that fit (Megatron-LM's uniform drops all layers
                and lets one number say how many share an input; our layers always keep theirs)
    block       the first k layers of each chunk of each stage, one k for all stages: the smallest that fits
    selective   one set of Megatron-LM's modules for all layers of all stages: the least recompute that fits
    checkmate   for each stage the least recompute that fits, by integer programming; blind to windows
    adapipe     the same by a dynamic program over layers, with one policy for each
    early       everything of adapipe, replayed ahead in pp_wait where there is room

All but `early` replay on demand: `window_kinds` is empty. `uniform`, `block` and `selective` take one choice for all
stages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from overlap_recompute.planner.choice import Front, thin
from overlap_recompute.planner.problem import StageProblem, StageSolution
from overlap_recompute.planner.search import smallest
from overlap_recompute.planner.workspace import Choice, Workspace, assemble

Dropped = tuple[frozenset[str], ...]
"""Of each layer of a stage."""

MODULES: tuple[tuple[str, ...], ...] = (
    ("core_attention",),
    ("input_layernorm", "pre_mlp_layernorm"),
    ("activation",),
    ("core_attention", "input_layernorm", "pre_mlp_layernorm"),
    ("core_attention", "activation"),
    ("input_layernorm", "pre_mlp_layernorm", "activation"),
    ("core_attention", "input_layernorm", "pre_mlp_layernorm", "activation"),
    ("pre_mlp_layernorm", "linear_fc1", "activation"),
    ("core_attention", "pre_mlp_layernorm", "linear_fc1", "activation"),
    ("core_attention", "input_layernorm", "pre_mlp_layernorm", "linear_fc1", "activation"),
)
"""Sets of modules that Megatron-LM recomputes (core_attn, layernorm, mlp, and mlp's activation), as our units."""


def droppable(problem: StageProblem, layer: int) -> frozenset[str]:
    """Units of a layer that may be dropped."""
    kind = problem.kinds[problem.layers[layer].kind]
    return frozenset(unit.name for unit in kind.units if unit.refusal is None)


def nothing(problems: Sequence[StageProblem]) -> Iterator[list[Dropped]]:
    """The only choice of `none`."""
    yield [_some(problem, lambda position: False) for problem in problems]


def everything(problems: Sequence[StageProblem]) -> Iterator[list[Dropped]]:
    """The only choice of `full`."""
    yield [_some(problem, lambda position: True) for problem in problems]


def uniform(problems: Sequence[StageProblem]) -> Iterator[list[Dropped]]:
    """Choices for all stages, the least recompute first."""
    most = max(len(problem.layers) for problem in problems)
    for count in range(most + 1):
        yield [_some(problem, _SpreadOut(count, max(1, most))) for problem in problems]


def block(problems: Sequence[StageProblem]) -> Iterator[list[Dropped]]:
    """Choices for all stages, the least recompute first."""
    for count in range(max(len(problem.layers) for problem in problems) + 1):
        yield [_some(problem, range(count).__contains__) for problem in problems]


def selective(problems: Sequence[StageProblem]) -> Iterator[list[Dropped]]:
    """Choices for all stages, the least recompute first."""
    choices = []
    for modules in ((), *MODULES):
        choice = [tuple(droppable(p, i) & set(modules) for i in range(len(p.layers))) for p in problems]
        choices.append((_replay_us(problems, choice), choice))
    yield from (choice for _, choice in sorted(choices, key=lambda pair: pair[0]))


class _SpreadOut:
    """Whether a position is one of `count` out of `of`, as evenly spread as can be."""

    __slots__ = ("_count", "_of")

    def __init__(self, count: int, of: int) -> None:
        self._count, self._of = count, of

    def __call__(self, position: int) -> bool:
        return position * self._count // self._of < (position + 1) * self._count // self._of


def _some(problem: StageProblem, is_chosen: Callable[[int], bool]) -> Dropped:
    """Everything in the layers whose position in their chunk is chosen."""
    positions: dict[int, int] = {}
    found = []
    for index, layer in enumerate(problem.layers):
        position = positions.get(layer.chunk, 0)
        positions[layer.chunk] = position + 1
        found.append(droppable(problem, index) if is_chosen(position) else frozenset())
    return tuple(found)


def _replay_us(problems: Sequence[StageProblem], choice: Sequence[Dropped]) -> float:
    total_us = 0.0
    for problem, dropped in zip(problems, choice, strict=True):
        for layer, names in zip(problem.layers, dropped, strict=True):
            total_us += sum(unit.forward_us for unit in problem.kinds[layer.kind].units if unit.name in names)
    return total_us


COMMON: Mapping[str, Callable[[Sequence[StageProblem]], Iterator[list[Dropped]]]] = {
    "none": nothing,
    "full": everything,
    "uniform": uniform,
    "block": block,
    "selective": selective,
}
"""Baselines that take one choice for all stages: their choices, the least recompute first."""


def without_windows(problem: StageProblem) -> StageProblem:
    """The same stage, everything on demand."""
    layers = tuple(
        replace(layer, first_window=0, own_window=0, deadlines=(0,) * len(layer.deadlines)) for layer in problem.layers
    )
    return replace(problem, windows=(), layers=layers, window_kinds=())


def least_recompute(workspace: Workspace, states: int) -> StageSolution | None:
    """The choice with the least recompute that fits, on demand: a knapsack over layers by dynamic programming.

    Args:
        workspace: all policies that may matter.
        states: how finely memory is told apart; exact where the Pareto front has no more points.
    """
    problem = workspace.problem
    front = Front(
        bytes_kept=np.zeros(1, dtype=np.int64),
        exposed_us=np.zeros(1),
        recompute_us=np.zeros(1),
        choices=np.zeros((1, 0), dtype=np.int64),
    )
    for index, layer in enumerate(problem.layers):
        table, in_flight = workspace.table(index), problem.chunks[layer.chunk].in_flight
        kept = (front.bytes_kept[:, None] + in_flight * table.kept_bytes[None, :]).ravel()
        cost = (front.recompute_us[:, None] + table.recompute_us[None, :]).ravel()
        best = thin(kept, cost, states)
        parent, policy = np.divmod(best, len(table.masks))
        front = Front(
            bytes_kept=kept[best],
            exposed_us=cost[best],
            recompute_us=cost[best],
            choices=np.column_stack([front.choices[parent], policy]),
        )
    rows: Iterator[Choice] = (tuple(front.choices[index].tolist()) for index in np.argsort(front.recompute_us))
    for choices in (rows, smallest(workspace)):
        for choice in choices:
            if sum(workspace.memory(choice)) <= problem.budget_bytes:
                return assemble(workspace, choice, ())
    return None
