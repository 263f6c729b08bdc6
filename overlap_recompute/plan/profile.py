"""A profile: what one layer of each kind costs on this hardware, and what the waits of this run are like.

It holds for one tensor-, context- and expert-parallel layout, one micro-batch and one sequence length, and for any way
to spread the layers over pipeline stages. Measured by a run (`--overlap-recompute-profile`) or computed for hardware
that one does not have (`overlap_recompute.simulator`); planner and simulator do not ask which.

All times are means in microseconds, for one microbatch on one rank: parts add up to passes, and these to iterations.
All sizes are bytes on one rank.
"""

from dataclasses import dataclass

from overlap_recompute.plan.split import Split
from overlap_recompute.plan.storages import BackwardMemory, StorageRow

PROFILE_VERSION = 1
COMPUTE = "compute"
"""The kind of a step that is no window."""
SEND = "send"
"""The link between pipeline stages."""
MOST_MICROBATCHES = 1 << 16
"""Of an iteration; planners walk through all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCost:
    """A unit of a layer; for a mixture all units of a name together (`experts.3.activation` is in `activation`)."""

    name: str
    """One of `LAYER_UNITS` for a Megatron layer; any name for another module."""
    forward_us: float
    """Of its forward pass, and so of its replay."""
    spread_us: float
    """Between the quartiles of what was measured; 0 where nothing was."""
    reads: tuple[str, ...]
    """Units whose outputs it takes as arguments: dropped ones must be replayed before it."""
    is_random: bool
    """Whether it draws random numbers."""
    refusal: str | None = None
    """Why it cannot be dropped; None: it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassStep:
    """A part of a layer's forward or backward pass, in the order in which they run."""

    kind: str
    """`COMPUTE`, or the value of a `WindowKind`: the rank waits for a communication with nothing else to do."""
    name: str
    """What is computed (a unit's name where it is one), or the collective: all_reduce, all_gather, reduce_scatter,
    all_to_all."""
    duration_us: float
    """Of a window: the wait alone. What the rank's own compute hides of the communication is not part of it."""
    spread_us: float = 0.0
    """Between the quartiles of what was measured; 0 where nothing was."""
    needs: tuple[str, ...] = ()
    """Backward: units whose results (outputs, or what they save inside) this step reads."""
    hidden_us: float = 0.0
    """Window: time of the communication that compute hides already."""
    payload_bytes: int = 0
    """Window: of the tensor that is communicated; 0 if unknown."""


Pass = tuple[PassStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """All layers of the same structure: one problem is solved for each kind."""

    fingerprint: str
    """Of module types, shapes, types and flags."""
    description: str
    """For people."""
    units: tuple[UnitCost, ...]
    """In forward order."""
    storages: tuple[StorageRow, ...]
    """What it may keep."""
    forward: Pass
    backward: Pass
    parameters: int
    """Elements on this rank, without those of routed experts."""
    expert_parameters: int
    """Elements of routed experts on this rank."""
    transient_bytes: int
    """Most that its passes hold at one time besides parameters, kept and recomputed tensors: gradients on their way."""
    backward_memory: BackwardMemory | None = None
    """The same step by step; None: `transient_bytes` at any time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndCost:
    """What comes before the first layer (embedding), or behind the last one (final norm, output layer, loss)."""

    forward: Pass
    backward: Pass
    parameters: int
    """Elements on this rank."""
    kept_bytes: int
    """Kept from forward to backward for one microbatch (logits included)."""
    transient_bytes: int
    """Most that it holds at one time besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFit:
    """Time of a transfer of n bytes after a pause: alpha_us + max(0, n - burst_bytes) * beta_us_per_byte."""

    name: str
    """all_reduce, all_gather, reduce_scatter, all_to_all (n: bytes of the whole tensor); send (pipeline, one way)."""
    alpha_us: float
    beta_us_per_byte: float
    points: tuple[tuple[int, float], ...] = ()
    """(bytes, us) that it was fitted to."""
    burst_bytes: int = 0
    """What passes at once after a pause: the depth of a token bucket, as rate-limited links have it; else 0."""

    def duration_us(self, nbytes: int) -> float:
        """Time of a transfer."""
        return self.alpha_us + max(0, nbytes - self.burst_bytes) * self.beta_us_per_byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a run is spread over ranks, and its batch."""

    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    context_parallel: int
    expert_parallel: int
    sequence_parallel: bool
    split: Split
    """Layers by stage and chunk."""
    micro_batch: int
    """Sequences of a microbatch."""
    sequence: int
    """Tokens of a sequence."""
    microbatches: int
    """Of one iteration, on one data-parallel rank."""

    @property
    def chunks(self) -> int:
        """Model chunks of a stage (virtual pipeline size)."""
        return len(self.split[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticRules:
    """Bytes of an element's weight, gradient and optimizer state, by Megatron's rules."""

    parameter_bytes: int
    """Of the weight as it computes: 4 or 2."""
    gradient_bytes: int
    """In the gradient buffer: 4 in fp32 or with fp32 accumulation, else 2."""
    main_parameter_bytes: int
    """Of the optimizer's fp32 copy: 4 in half precision, else 0."""
    state_bytes: int
    """Of the optimizer's states: 8 for Adam in fp32, 4 for SGD with momentum, 0 for SGD without."""
    shards: int
    """Ranks that share optimizer state and main parameters (distributed optimizer: data x context parallel); else 1."""
    expert_shards: int
    """The same for routed experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the figures come from."""

    source: str
    """measured, or analytic."""
    hardware: str
    """Of the machine measured, or the name of the hardware computed for."""
    software: tuple[tuple[str, str], ...]
    """(package, version)."""
    taken: str
    """Date, ISO 8601."""
    command: str
    """That made it."""
    note: str = ""
    """What a reader must know, e.g. that the link was emulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """See the head of this file."""

    version: int
    origin: Origin
    model_fingerprint: str
    """Of the flags that define the model and its layout within a stage; a plan is refused by another model's run."""
    model: str
    """For people."""
    layout: Layout
    """Of the run that was measured; other splits may be planned from it."""
    kinds: tuple[LayerKind, ...]
    layers: tuple[int, ...]
    """Index into `kinds` of every layer of the model."""
    embedding: EndCost
    head: EndCost
    links: tuple[LinkFit, ...]
    boundary_bytes: int
    """Of the tensor between two stages, one microbatch."""
    static: StaticRules
    base_bytes: int
    """Process or device memory before the model exists (libraries, contexts)."""
    communication_bytes: int
    """Buffers of communication libraries."""
    tied_embeddings: bool
    """Whether the head's matrix is the embedding's: on its own stage it is a copy with gradient and optimizer state."""
    update_us: float
    """Of an iteration outside of its passes (gradient reduction that nothing hides, optimizer), for this split."""
    update_communication_us: float = 0.0
    """The part of `update_us` that waits for communication, e.g. for the sum of the gradients of tied embeddings."""
    flops_per_token: float = 0.0
    """Of forward and backward of the whole model, no recompute; for TFLOP/s."""
    peak_tflops: float = 0.0
    """Of one device in this precision; 0: unknown, and no MFU is given."""
    tied_parameters: int = 0
    """Elements on one rank of the matrix that embedding and head share (both count it); 0 without tied embeddings."""

    def kind_of(self, layer: int) -> LayerKind:
        """The kind of a layer of the model."""
        return self.kinds[self.layers[layer]]

    def link(self, name: str) -> LinkFit | None:
        """The fit of this name; None if it was not measured."""
        return next((fit for fit in self.links if fit.name == name), None)
