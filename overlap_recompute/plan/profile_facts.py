"""What a profile holds besides measurements: it follows from the options of the run."""

from dataclasses import dataclass

from overlap_recompute.plan.counted import CountedModel
from overlap_recompute.plan.profile import Layout, StaticRules


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFacts:
    """Of the run."""

    model: str
    """For people."""
    model_fingerprint: str
    layout: Layout
    static: StaticRules
    boundary_bytes: int
    """Of the tensor between two stages."""
    payload_bytes: int
    """Of a tensor-parallel collective."""
    tied_embeddings: bool
    counted: CountedModel | None
    """Counted without running it, for what cannot be measured (bytes of gradients); None: estimated from sizes."""
    flops_per_token: float
    software: tuple[tuple[str, str], ...]
    command: str
    note: str
