"""A plan: what each stage keeps, drops and recomputes where. Made by a planner, carried out by the runtime, in a file.

Window names: `B7.1` is the window at position 1 among the steps of kind window in the backward pass of layer 7, `F7.0`
one of its forward pass, `P` the wait for the gradient from the next stage before a backward pass, `PF` the wait for the
output of the previous stage before the forward pass of another microbatch that precedes it.
"""

from dataclasses import dataclass

from overlap_recompute.plan.profile import Layout

PLAN_VERSION = 1
PIPELINE_WINDOW = "P"
FORWARD_WAIT = "PF"


MEMORY_TERMS = (
    ("weights", "parameters_bytes"),
    ("gradients", "gradients_bytes"),
    ("optimizer", "optimizer_bytes"),
    ("kept", "kept_bytes"),
    ("ahead", "prefetched_bytes"),
    ("working set", "working_set_bytes"),
    ("head", "head_bytes"),
    ("transfers", "communication_bytes"),
    ("base", "base_bytes"),
    ("margin", "margin_bytes"),
)
"""What tables call the fields of a `MemoryTable`, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """Decisions for one layer."""

    layer: int
    """Index in the model, from 0."""
    chunk: int
    """Model chunk of the stage."""
    dropped: tuple[str, ...]
    """Unit names in forward order; all others are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFill:
    """One unit's replay in a window of the steady state."""

    layer: int
    unit: str
    window: str
    """See the head of this file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTable:
    """Peak memory of one rank, term by term, in bytes; `total_bytes` is their sum."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    kept_bytes: int
    """Kept activations of all microbatches in flight, embedding and head included."""
    prefetched_bytes: int
    """Recomputed ahead of need: the cap."""
    working_set_bytes: int
    """One layer's dropped tensors while its backward pass runs, and what its passes hold besides."""
    head_bytes: int
    """Logits and loss while they are computed, where they exceed a layer's working set."""
    communication_bytes: int
    """Buffers of communication libraries, and of pipeline transfers."""
    base_bytes: int
    margin_bytes: int
    """Stated allowance for the allocator."""

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return sum(getattr(self, field) for _, field in MEMORY_TERMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePrediction:
    """What the planner expects of a stage in the steady state, for one microbatch through all its chunks."""

    forward_us: float
    backward_us: float
    """Without any recompute."""
    recompute_us: float
    """Hidden and exposed."""
    exposed_us: float
    in_flight: tuple[int, ...]
    """Most microbatches in flight, by chunk."""
    memory: MemoryTable


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """What one pipeline stage does."""

    stage: int
    layers: tuple[LayerPlan, ...]
    """All its layers, chunk after chunk."""
    window_kinds: tuple[str, ...]
    """Values of `WindowKind` that are filled; none: everything is recomputed on demand."""
    prefetch_cap_bytes: int
    """Most that is brought back ahead of need."""
    fills: tuple[PlannedFill, ...]
    """Where the dropped units are expected to be recomputed; those that are missing are exposed. A host that can poll
    its communication fills by need instead (docs/planner.md)."""
    predicted: StagePrediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """See the head of this file."""

    version: int
    planner: str
    """Name of the planner: heu, mix, opt, none, full, uniform, block, selective, checkmate, adapipe, early."""
    created: str
    """Date and time, ISO 8601."""
    model_fingerprint: str
    """Of the profile it was made from."""
    layout: Layout
    software: tuple[tuple[str, str], ...]
    """(package, version) of the profile."""
    budget_bytes: int
    """Memory of one rank that the plan may use."""
    predicted_iteration_us: float
    stages: tuple[StagePlan, ...]
    note: str = ""
