"""Recomputation ahead of need."""

from dataclasses import dataclass

from megatron.pretrain.config.ranges import NonNegativeFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapOptions:
    """Overlapped recompute: drop activations, bring them back while communication is in flight."""

    overlap_recompute: bool = False
    """Own flag. Drop what --overlap-recompute-policy says, and recompute it in the waits of collectives and pipeline
    transfers before backward needs it. Replaces the stock recomputation of --recompute-granularity."""

    overlap_recompute_policy: str | None = None
    """Own flag. What each pipeline stage drops: none; all; on-demand (all, without overlap); by stage, as 0:all,1:none;
    by unit, as all:core_attention+activation or 0:linear_fc1+activation,1:none. Units are input_layernorm, linear_qkv,
    rotary, core_attention, pre_mlp_layernorm, linear_fc1 and activation; all when not given."""

    overlap_recompute_prefetch_mib: NonNegativeFloat | None = None
    """Own flag. Most MiB that may be brought back before backward uses them; when not given, what two layers drop."""

    overlap_recompute_verify: bool = False
    """Own flag. Keep a copy of all that is dropped and compare each recomputed tensor with it, bit for bit: needs the
    memory that dropping saves, and ends the run with the unit's name at the first difference."""

    overlap_recompute_serialize: bool = False
    """Own flag. Drop the same but recompute on demand, in no wait: tells a fault of timing from a fault of numerics."""

    overlap_recompute_trace: str | None = None
    """Own flag. Folder for one trace per rank, which Perfetto and chrome://tracing open; tools/merge_traces.py joins
    them."""
