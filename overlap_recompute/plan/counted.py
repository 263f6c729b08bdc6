"""What a model keeps, counted without running it: sizes of its layers and ends on one rank, and no times.

`megatron/overlap/counting` makes it from the options of a run, on any machine. It fills the sizes of a profile
(`LayerKind.storages` and so on), and `memory_profile` makes a profile of it that the memory expression can read.
"""

from dataclasses import dataclass

from overlap_recompute.plan.profile import (
    COMPUTE,
    PROFILE_VERSION,
    EndCost,
    LayerKind,
    Layout,
    Origin,
    PassStep,
    Profile,
    StaticRules,
    UnitCost,
)
from overlap_recompute.plan.storages import BackwardMemory, StorageRow

COUNTED_VERSION = 1
COUNTED = "counted"
"""The source of such a profile: its times are 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedUnit:
    """A unit of a layer; for a mixture all units of a name together."""

    name: str
    """As in `UnitCost`."""
    reads: tuple[str, ...]
    """Units whose outputs it takes as arguments."""
    refusal: str | None
    """Why it cannot be dropped; None: it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedKind:
    """All layers of the same structure."""

    fingerprint: str
    """Of module types, shapes, types and flags."""
    description: str
    """For people."""
    units: tuple[CountedUnit, ...]
    """In forward order."""
    storages: tuple[StorageRow, ...]
    """What it may keep."""
    backward_needs: tuple[tuple[str, ...], ...]
    """Units whose storages backward reads, step after step."""
    parameters: int
    """Elements on this rank, without those of routed experts."""
    expert_parameters: int
    """Elements of routed experts on this rank."""
    transient_bytes: int
    """Most that its backward pass holds besides parameters, kept and recomputed tensors."""
    backward_memory: BackwardMemory | None = None
    """The same step by step; None: `transient_bytes` at any time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedEnd:
    """Embedding, or final norm, output layer and loss."""

    parameters: int
    """Elements on this rank; of the head with its matrix, also where that is the embedding's."""
    kept_bytes: int
    """Kept from forward to backward for one microbatch."""
    transient_bytes: int
    """Most that it holds at one time besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedModel:
    """A model as ranks of this layout hold it."""

    version: int
    device: str
    """Whose kernels were counted: cpu or cuda."""
    model: str
    """For people."""
    model_fingerprint: str
    """Of the kinds of its layers and of its ends."""
    layout: Layout
    kinds: tuple[CountedKind, ...]
    layers: tuple[int, ...]
    """Index into `kinds` of every layer of the model."""
    embedding: CountedEnd
    head: CountedEnd
    boundary_bytes: int
    """Of the tensor between two stages, one microbatch."""
    static: StaticRules
    tied_parameters: int
    """Elements of the matrix that embedding and head share; 0 if they do not."""
    software: tuple[tuple[str, str], ...]
    """(package, version)."""

    def kind_of(self, layer: int) -> CountedKind:
        """The kind of a layer of the model."""
        return self.kinds[self.layers[layer]]


def memory_profile(counted: CountedModel, *, base_bytes: int = 0, communication_bytes: int = 0) -> Profile:
    """A profile for the memory expression: sizes as counted, all times 0.

    Args:
        counted: the model.
        base_bytes: process or device memory before the model exists.
        communication_bytes: buffers of communication libraries.
    """
    return Profile(
        version=PROFILE_VERSION,
        origin=Origin(
            source=COUNTED, hardware=counted.device, software=counted.software, taken="", command="", note="sizes only"
        ),
        model_fingerprint=counted.model_fingerprint,
        model=counted.model,
        layout=counted.layout,
        kinds=tuple(map(_layer_kind, counted.kinds)),
        layers=counted.layers,
        embedding=_end(counted.embedding),
        head=_end(counted.head),
        links=(),
        boundary_bytes=counted.boundary_bytes,
        static=counted.static,
        base_bytes=base_bytes,
        communication_bytes=communication_bytes,
        tied_embeddings=counted.tied_parameters > 0,
        update_us=0.0,
        tied_parameters=counted.tied_parameters,
    )


def _layer_kind(kind: CountedKind) -> LayerKind:
    return LayerKind(
        fingerprint=kind.fingerprint,
        description=kind.description,
        units=tuple(
            UnitCost(
                name=unit.name, forward_us=0.0, spread_us=0.0, reads=unit.reads, is_random=False, refusal=unit.refusal
            )
            for unit in kind.units
        ),
        storages=kind.storages,
        forward=(),
        backward=tuple(
            PassStep(kind=COMPUTE, name="backward", duration_us=0.0, needs=needs) for needs in kind.backward_needs
        ),
        parameters=kind.parameters,
        expert_parameters=kind.expert_parameters,
        transient_bytes=kind.transient_bytes,
        backward_memory=kind.backward_memory,
    )


def _end(end: CountedEnd) -> EndCost:
    return EndCost(
        forward=(),
        backward=(),
        parameters=end.parameters,
        kept_bytes=end.kept_bytes,
        transient_bytes=end.transient_bytes,
    )
