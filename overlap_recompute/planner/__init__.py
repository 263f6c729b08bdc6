"""Decides what to keep, what to recompute and where, for a memory budget (docs/planner.md)."""

from overlap_recompute.planner.infeasible import InfeasibleError
from overlap_recompute.planner.plan import make_plan
from overlap_recompute.planner.progress import Progress
from overlap_recompute.planner.solve import PLANNERS, solve_stage

__all__ = ["PLANNERS", "InfeasibleError", "Progress", "make_plan", "solve_stage"]
