"""Predicts an iteration of a profile and a plan, without a run: docs/simulator.md."""

from overlap_recompute.simulator.simulate import simulate
from overlap_recompute.simulator.stage_times import PassTimes, pass_times
from overlap_recompute.simulator.timeline import (
    LANES,
    Lane,
    MemoryPoint,
    SimulationResult,
    Span,
    StageResult,
    WindowUse,
)

__all__ = [
    "LANES",
    "Lane",
    "MemoryPoint",
    "PassTimes",
    "SimulationResult",
    "Span",
    "StageResult",
    "WindowUse",
    "pass_times",
    "simulate",
]
