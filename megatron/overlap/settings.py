"""What a session needs to know about its run, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from overlap_recompute.plan.policy_text import Drop
from overlap_recompute.plan.run_trace import TraceOrigin
from overlap_recompute.plan.windows import WindowKind


class MicrobatchKey(NamedTuple):
    """Names a forward pass in messages: "microbatch 3, chunk 0, pipeline stage 1"."""

    stage: int
    chunk: int
    number: int

    def __str__(self) -> str:
        return f"{self.number}, chunk {self.chunk}, pipeline stage {self.stage}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapSettings:
    """The place of this rank and what the flags ask for."""

    rank: int
    """Of the whole job."""
    stage: int
    """Pipeline rank."""
    stages: int
    """Pipeline-parallel size."""
    microbatches: int
    """Of one training step."""
    drop: Drop
    """What this stage drops."""
    fills: frozenset[WindowKind]
    """The windows that are filled with recompute; none to recompute on demand only."""
    prefetch_cap_bytes: int | None
    """Most bytes brought back before backward uses them; None: what two layers drop."""
    verify: bool
    """Compare every replay with what was dropped."""
    trace_folder: Path | None
    """Where to write this rank's trace."""
    flight_folder: Path | None = None
    """Where to leave the last marks of a step that fails when there is no `trace_folder`; None: nowhere."""
    trace_origin: TraceOrigin | None = None
    """What it says about the run; None: nothing."""
    flags: str
    """The flags as one text; must be the same on all ranks."""
    device: torch.device
    """Where the model lives."""
    delays_weight_gradients: bool = False
    """Whether weight gradients of row-parallel linears wait for a window (`delayed_gradients`)."""
    planned: Mapping[int, tuple[str, ...]] | None = None
    """What a plan drops of each layer of this stage; None: `drop` says it."""
    units_per_window: int | None = None
    """Where the host runs ahead of its device: units that a window takes; None: a layer's units over its windows."""
    predicted: Mapping[str, float] = field(default_factory=dict)
    """Figures that a plan expects, by name, to be logged beside those measured."""
