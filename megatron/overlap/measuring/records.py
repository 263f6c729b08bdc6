"""What one rank measured: plain values that travel as JSON."""

from dataclasses import dataclass

from overlap_recompute.plan.profile import LinkFit, Pass, UnitCost
from overlap_recompute.plan.storages import StorageRow

RECORD_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRecord:
    """All layers of one structure that this rank holds."""

    fingerprint: str
    description: str
    layers: tuple[int, ...]
    """Indices in the model."""
    units: tuple[UnitCost, ...]
    forward: Pass
    backward: Pass
    storages: tuple[StorageRow, ...]
    samples: int
    """Passes behind each median."""
    parameters: int
    expert_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRecord:
    """Embedding or head."""

    forward: Pass
    backward: Pass
    parameters: int
    storages: tuple[StorageRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRecord:
    """See the head of this file."""

    version: int
    stage: int
    kinds: tuple[KindRecord, ...]
    embedding: EndRecord | None
    head: EndRecord | None
    word_parameters: int
    """Elements of the embedding's matrix; 0 on other stages than the first."""
    links: tuple[LinkFit, ...]
    iteration_us: float
    """Median of the measured iterations."""
    passes_us: float
    """Of an iteration, inside forward and backward passes."""
    update_us: float
    """Of an iteration, before the first pass and from the end of the last one."""
    update_communication_us: float
    """The part of it that waits for communication."""
    between_us: float
    """Of an iteration, between passes: waits for other stages, and the schedule."""
    marks: int
    """Of an iteration."""
    mark_us: float
    """What a mark costs."""
    base_bytes: int
    communication_bytes: int
    hardware: str
