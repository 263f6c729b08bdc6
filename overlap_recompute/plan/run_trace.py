"""What writers and readers of a run's traces agree on: lanes, and what a trace says about its run."""

from dataclasses import dataclass

LANES = ("schedule", "windows", "hidden", "exposed")
"""Of a rank, by thread number."""
RUN_EVENT = "overlap_recompute_run"
"""Name of the metadata event whose `args` are a `TraceOrigin`; viewers pass over it."""
TRACE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOrigin:
    """The run of a trace, and the place of the rank in it."""

    version: int
    rank: int
    """Of the whole job."""
    ranks: int
    """Of the whole job."""
    stage: int
    """Pipeline rank."""
    stages: int
    """Pipeline-parallel size."""
    chunks: int
    """Model chunks of a stage."""
    microbatches: int
    """Of one iteration, on one data-parallel rank."""
    model_fingerprint: str
    """As in profiles and plans."""
    plan_digest: str | None
    """`plan_digest` of the plan that was carried out; None: there was none."""
    planner: str
    """Of that plan; empty without one."""
    policy: str | None
    """What was dropped where no plan said it (docs/overlap.md)."""
    window_kinds: tuple[str, ...]
    """Values of `WindowKind` that were filled."""
    prefetch_cap_bytes: int | None
    """None: the runtime's choice."""
    device: str
    """cpu or cuda."""
    taken: str
    """When the trace was begun, ISO 8601."""
    note: str = ""
    """What whoever reads its times must know, such as that the link between ranks was emulated."""
