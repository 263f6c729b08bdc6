"""Recompute ahead of need, for any `nn.Module`; torch only (docs/runtime.md)."""

from overlap_recompute.plan.decisions import Decision, Policy, UnitDecision
from overlap_recompute.runtime.ambient import ContextProvider
from overlap_recompute.runtime.errors import (
    InPlaceError,
    Place,
    ReplayError,
    UnfinishedError,
    UnitError,
    UnsafeUnitError,
    VerifyError,
)
from overlap_recompute.runtime.journal import Event, Journal, Kind
from overlap_recompute.runtime.lanes import Fence, InlineLane, Lane, StreamLane
from overlap_recompute.runtime.ledger import Ledger
from overlap_recompute.runtime.marks import ReplayMarks
from overlap_recompute.runtime.recompute_queue import Fill, RecomputeQueue, Stop
from overlap_recompute.runtime.report import LayerBytes, StepReport
from overlap_recompute.runtime.rng import CpuRng, CudaRng, RngProvider
from overlap_recompute.runtime.runtime import Runtime
from overlap_recompute.runtime.scope import MicrobatchScope

__all__ = [
    "ContextProvider", "CpuRng", "CudaRng", "Decision", "Event", "Fence", "Fill", "InPlaceError",
    "InlineLane", "Journal", "Kind", "Lane", "LayerBytes", "Ledger", "MicrobatchScope", "Place", "Policy",
    "RecomputeQueue", "ReplayError", "ReplayMarks", "RngProvider", "Runtime", "StepReport", "Stop", "StreamLane",
    "UnfinishedError", "UnitDecision", "UnitError", "UnsafeUnitError", "VerifyError",
]  # fmt: skip
