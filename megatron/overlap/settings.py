"""What a session needs to know about its run, as plain values."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from overlap_recompute.plan.policy_text import Drop


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
    serialize: bool
    """Recompute on demand only."""
    prefetch_cap_bytes: int | None
    """Most bytes brought back before backward uses them; None: what two layers drop."""
    verify: bool
    """Compare every replay with what was dropped."""
    trace_folder: Path | None
    """Where to write this rank's trace."""
    flags: str
    """The flags as one text; must be the same on all ranks."""
    device: torch.device
    """Where the model lives."""
