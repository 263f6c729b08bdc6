"""From a solution with banks to one with windows: its choice of policies, and the replays of each bank in its windows.

The packing heuristic is tried first. Where it hides less than the relaxation does, HiGHS looks for a better packing, in
the program with all windows of which nothing else is left open.
"""

from overlap_recompute.planner.banks import Banks
from overlap_recompute.planner.highs import Solver
from overlap_recompute.planner.milp import Program, build_program, call_of, fills_of
from overlap_recompute.planner.milp_columns import choice_of
from overlap_recompute.planner.packing import Effort
from overlap_recompute.planner.policies import Floats
from overlap_recompute.planner.problem import StageSolution
from overlap_recompute.planner.workspace import Workspace, assemble, price

LIMIT_S = 2.0
"""For HiGHS to look for a packing."""
EFFORT = Effort(width=8, sums=64, jobs=10)
_GAP, _EPSILON_US = 1e-3, 1e-3


class Spreader:
    """Puts solutions of a program with banks into windows; the program with windows is built when it is needed."""

    __slots__ = ("_workspace", "_banks", "_relaxed", "_solver", "_program")

    def __init__(self, workspace: Workspace, banks: Banks, relaxed: Program, solver: Solver) -> None:
        self._workspace, self._banks, self._relaxed, self._solver = workspace, banks, relaxed, solver
        self._program: Program | None = None

    def __call__(self, values: Floats, left_s: float) -> StageSolution | None:
        """The best solution found for the policies in these values of the relaxation's variables."""
        choice = choice_of(self._workspace, self._relaxed.columns, values)
        ideal_us = float(self._relaxed.objective @ values[: len(self._relaxed.objective)])
        found = price(self._workspace, choice, EFFORT)
        if left_s <= 0 or (found is not None and found.exposed_us <= ideal_us * (1 + _GAP) + _EPSILON_US):
            return found
        program = self._program = self._program or build_program(self._workspace)
        columns, upper = program.columns, program.upper.copy()
        for (layer, policy), column in columns.policy.items():
            upper[column] = float(choice[layer] == policy)
        for (layer, unit), column in columns.dropped.items():
            upper[column] = float(self._workspace.table(layer).masks[choice[layer]] >> unit & 1)
        banked = {(fill.layer, fill.unit): fill.window for fill in fills_of(self._relaxed, values)}
        for (layer, unit, window), column in columns.placed.items():
            upper[column] = float(banked.get((layer, unit)) == self._banks.bank_of[window])
        answer = self._solver(call_of(program, limit_s=min(LIMIT_S, left_s), gap=_GAP, upper=upper))
        if answer.values is None:
            return found
        other = assemble(self._workspace, choice, fills_of(program, answer.values))
        if other.total_bytes > self._workspace.problem.budget_bytes:  # the solver's tolerance
            return found
        return other if found is None or other.exposed_us < found.exposed_us else found
