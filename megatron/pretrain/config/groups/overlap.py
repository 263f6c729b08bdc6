"""Recomputation ahead of need."""

from dataclasses import dataclass

from megatron.pretrain.config.ranges import NonNegativeFloat, PositiveFloat, PositiveInt


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

    overlap_recompute_plan: str | None = None
    """Own flag. File of a plan (overlap-recompute plan): what each layer drops, which waits are filled, and how the
    layers are spread over stages. Takes the place of policy, windows and prefetch flags."""

    overlap_recompute_windows: str | None = None
    """Own flag. The waits that are filled with recompute: all, or kinds joined by +, of tp_forward, tp_backward,
    pp_wait, ep and cp; all when not given. The others are measured."""

    overlap_recompute_prefetch_mib: NonNegativeFloat | None = None
    """Own flag. Most MiB that may be brought back before backward uses them; when not given, what two layers drop."""

    overlap_recompute_delay_wgrad: bool = False
    """Own flag. Compute the weight gradients of row-parallel linears (attention's output, second of the feed-forward
    block) while the next all-reduce of the backward pass is in flight, not before it starts, and add all weight
    gradients to their buffers then: for windows longer than what is recomputed. The same bits; a layer's activation
    stays in memory a little longer. Measure a profile with it, too."""

    overlap_recompute_verify: bool = False
    """Own flag. Keep a copy of all that is dropped and compare each recomputed tensor with it, bit for bit: needs the
    memory that dropping saves, and ends the run with the unit's name at the first difference."""

    overlap_recompute_serialize: bool = False
    """Own flag. Drop the same but recompute on demand, in no wait: tells a fault of timing from a fault of numerics."""

    overlap_recompute_trace: str | None = None
    """Own flag. Folder for one trace per rank, which Perfetto and chrome://tracing open; tools/merge_traces.py joins
    them."""

    overlap_recompute_profile: str | None = None
    """Own flag. File for a profile of this run, which overlap-recompute plan reads: first iterations are measured
    without any recompute, then the run goes on as asked."""

    overlap_recompute_profile_warmup: PositiveInt | None = None
    """Own flag. Iterations before the measured ones; 2 when not given."""

    overlap_recompute_profile_iterations: PositiveInt | None = None
    """Own flag. Iterations that are measured; 5 when not given."""

    overlap_recompute_auto: bool = False
    """Own flag. Measure the first iterations, plan from them, and go on with the plan; see docs/profile.md."""

    overlap_recompute_memory_gib: PositiveFloat | None = None
    """Own flag. Memory of a rank that --overlap-recompute-auto plans for, in GiB; on a GPU, when not given, nine tenths
    of the device's."""

    overlap_recompute_auto_plan: str | None = None
    """Own flag. With --overlap-recompute-auto: file in which the run keeps its plan, with the better split of the
    layers over stages if it found one. A start that finds the file takes that split and follows the plan, and measures
    nothing unless --overlap-recompute-replan-interval says so."""

    overlap_recompute_replan_interval: PositiveInt | None = None
    """Own flag. With --overlap-recompute-auto: iterations of a plan until the run is measured anew and planned for
    again, without a restart; never when not given."""
