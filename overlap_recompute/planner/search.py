"""Local search over choices of policies, shared by planners."""

from collections.abc import Iterator

import numpy as np

from overlap_recompute.planner.choice import evaluate
from overlap_recompute.planner.packing import Effort
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.workspace import Choice, Workspace, price

SMALL = 9
"""Units in a stage up to which a search takes pains: packing costs next to nothing, and single units weigh much."""
EXHAUSTIVE = Effort(width=12, sums=32, jobs=8)
THOROUGH_MOVES = 24
PRICE = 0.1
"""Of hidden time relative to exposed time, when neighbours are ranked."""
_LEAST_US = 1e-6


def effort_of(workspace: Workspace) -> Effort | None:
    """How hard to look on a small stage; None on a larger one."""
    return EXHAUSTIVE if units_of(workspace) <= SMALL else None


def units_of(workspace: Workspace) -> int:
    """Units in the stage that some policy drops."""
    layers = range(len(workspace.problem.layers))
    return sum(int(np.bitwise_or.reduce(workspace.table(layer).masks)).bit_count() for layer in layers)


class Search:
    """The best solution so far, and how much effort is left."""

    __slots__ = ("best", "choice", "_workspace", "_effort", "_seen")

    def __init__(self, workspace: Workspace, effort: Effort) -> None:
        self.best: StageSolution | None = None
        self.choice: Choice = ()
        self._workspace, self._effort = workspace, effort
        self._seen: set[Choice] = set()

    @property
    def is_done(self) -> bool:
        """Whether nothing is exposed."""
        return self.best is not None and self.best.exposed_us <= _LEAST_US

    def consider(self, choice: Choice) -> bool:
        """Pack a choice unless that was done before or cannot help; whether it is the new best one."""
        if choice in self._seen:
            return False
        self._seen.add(choice)
        found = price(self._workspace, choice, self._effort)
        if found is None or (self.best is not None and found.exposed_us >= self.best.exposed_us - _LEAST_US):
            return False
        self.best, self.choice = found, choice
        return True

    def improve(self) -> None:
        """Local search: pack the most promising neighbours of the best choice, until none is better."""
        moves, improved = THOROUGH_MOVES, self.best is not None
        while improved and not self.is_done:
            improved = False
            for choice in _neighbours(self._workspace, self.choice, moves):
                if moves <= 0 or self.is_done:
                    return
                if choice not in self._seen:
                    moves -= 1
                    improved = self.consider(choice)
                    if improved:
                        break


def smallest(workspace: Workspace) -> Iterator[Choice]:
    """Choices that keep least for a limit on the working set, for lower and lower limits.

    With n >= 1 microbatches in flight a byte that is not kept saves n bytes, and makes the working set of later layers
    larger by one byte at most: under a limit, keeping least is best.
    """
    problem = workspace.problem
    limit_bytes = problem.budget_bytes
    while True:
        picks: list[int] = [0] * len(problem.layers)
        most_bytes = 0
        freed = [chunk.freed_bytes for chunk in problem.chunks]
        for index in range(len(picks) - 1, -1, -1):
            table, number = workspace.table(index), problem.layers[index].chunk
            working = table.working_bytes + problem.chunks[number].waiting_bytes - freed[number]
            small = np.flatnonzero(working <= limit_bytes)
            if len(small) == 0:
                return
            pick = int(small[np.lexsort((table.recompute_us[small], table.kept_bytes[small]))[0]])
            picks[index] = pick
            freed[number] += int(table.kept_bytes[pick])
            most_bytes = max(most_bytes, int(working[pick]))
        yield tuple(picks)
        if most_bytes <= problem.floor_bytes:
            return
        limit_bytes = most_bytes - 1


def _neighbours(workspace: Workspace, choice: Choice, most: int) -> Iterator[Choice]:
    """Choices that differ in one or two layers, and fit into memory; the most promising first."""
    layers = len(choice)
    rows = [np.array([choice])]
    for first in range(layers):
        ones = np.arange(len(workspace.table(first).masks))
        changed = np.tile(np.array(choice), (len(ones), 1))
        changed[:, first] = ones
        rows.append(changed)
        for second in range(first + 1, layers):
            twos = np.arange(len(workspace.table(second).masks))
            both = np.tile(np.array(choice), (len(ones) * len(twos), 1))
            both[:, first], both[:, second] = np.repeat(ones, len(twos)), np.tile(twos, len(ones))
            rows.append(both)
    choices = np.concatenate(rows)
    needed, exposed, total = evaluate(workspace, choices)
    fitting = np.flatnonzero(needed <= workspace.problem.budget_bytes)
    order = fitting[np.argsort(exposed[fitting] + PRICE * total[fitting], kind="stable")]
    found = 0
    for index in order:
        near = tuple(choices[index].tolist())
        if near != choice:
            yield near
            found += 1
            if found >= most:
                return
