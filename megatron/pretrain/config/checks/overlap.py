"""Overlapped recompute."""

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.pretrain_config import PretrainConfig
from overlap_recompute.plan.policy_text import ON_DEMAND, parse_policy
from overlap_recompute.plan.windows import parse_windows

SWITCH = "--overlap-recompute"
POLICY = "--overlap-recompute-policy"
WINDOWS = "--overlap-recompute-windows"
PROFILE = "--overlap-recompute-profile"
AUTO = "--overlap-recompute-auto"
AUTO_MEMORY = "--overlap-recompute-memory-gib"
AUTO_PLAN = "--overlap-recompute-auto-plan"
DELAY = "--overlap-recompute-delay-wgrad"
REPLAN = "--overlap-recompute-replan-interval"
PROFILE_WARMUP, PROFILE_ITERATIONS = 2, 5
"""Iterations when the flags do not say."""


def options_need_the_switch(config: PretrainConfig) -> None:
    """The other flags say how; the switch says whether."""
    options = config.overlap
    given = {
        POLICY: options.overlap_recompute_policy is not None,
        WINDOWS: options.overlap_recompute_windows is not None,
        "--overlap-recompute-prefetch-mib": options.overlap_recompute_prefetch_mib is not None,
        "--overlap-recompute-verify": options.overlap_recompute_verify,
        "--overlap-recompute-serialize": options.overlap_recompute_serialize,
        "--overlap-recompute-trace": options.overlap_recompute_trace is not None,
    }
    stray = [flag for flag, is_given in given.items() if is_given]
    require(
        options.overlap_recompute or not stray,
        f"{' and '.join(stray)} without {SWITCH}",
        f"{SWITCH} with them",
        f"add {SWITCH}, or remove {' and '.join(stray)}",
    )


def stock_recompute_is_off(config: PretrainConfig) -> None:
    """Two recomputations would drop, and replay, the same tensors."""
    granularity = config.recompute.recompute_granularity
    require(
        not config.overlap.overlap_recompute or granularity is None,
        f"{SWITCH} with --recompute-granularity {granularity}",
        "one of the two",
        f"remove the --recompute flags to recompute ahead of need, or {SWITCH} to recompute as Megatron-Core does",
    )


def policy_can_be_read(config: PretrainConfig) -> None:
    """It follows the grammar, and its stages and units exist."""
    text = config.overlap.overlap_recompute_policy
    if text is not None:
        parse_policy(text, config.parallel.pipeline_model_parallel_size, flag=POLICY)


def windows_can_be_read(config: PretrainConfig) -> None:
    """Its kinds of windows exist, and some are to be filled."""
    options, text = config.overlap, config.overlap.overlap_recompute_windows
    if text is None:
        return
    parse_windows(text, flag=WINDOWS)
    on_demand = {
        "--overlap-recompute-serialize": options.overlap_recompute_serialize,
        f"{POLICY} {ON_DEMAND}": options.overlap_recompute_policy == ON_DEMAND,
    }
    other = next((flag for flag, is_given in on_demand.items() if is_given), None)
    require(
        other is None,
        f"{WINDOWS} {text} with {other}, which fills none",
        "one of the two",
        f"remove {WINDOWS} to recompute on demand, or {other} to fill windows",
    )


def named_units_can_be_dropped(config: PretrainConfig) -> None:
    """A unit that is named is there, and its replay repeats no collective."""
    text = config.overlap.overlap_recompute_policy
    if text is None:
        return
    drops = parse_policy(text, config.parallel.pipeline_model_parallel_size, flag=POLICY).stages
    named = {unit for drop in drops if drop.by_name for unit in drop.units}
    for unit, (holds, reason, next_step) in _conditions(config).items():
        require(
            unit not in named or holds,
            f"{POLICY} {text}, whose {unit} {reason}",
            "units whose replay runs no collective",
            next_step,
        )


def profile_is_complete(config: PretrainConfig) -> None:
    """The flags about a profile come with one, and the run is long enough for it."""
    options = config.overlap
    given = {
        f"{PROFILE}-warmup": options.overlap_recompute_profile_warmup,
        f"{PROFILE}-iterations": options.overlap_recompute_profile_iterations,
    }
    stray = [flag for flag, value in given.items() if value is not None]
    if options.overlap_recompute_profile is None and not options.overlap_recompute_auto:
        require(not stray, f"{' and '.join(stray)} without {PROFILE}", f"{PROFILE} FILE", f"add {PROFILE}")
        return
    iterations = sum(profile_iterations(config))
    require(
        config.train_iters >= iterations,
        f"a profile, which takes {iterations} iterations, in a run of {config.train_iters}",
        f"at least {iterations} iterations (warm-up and measured ones)",
        f"raise --train-iters, or lower {PROFILE}-iterations",
    )
    granularity = config.recompute.recompute_granularity
    require(
        granularity is None,
        f"{PROFILE} with --recompute-granularity {granularity}",
        "a run in which every unit computes once",
        "remove the --recompute flags; what recompute costs follows from the profile",
    )


def auto_has_what_it_needs(config: PretrainConfig) -> None:
    """A switch that it extends, a budget, and nobody else who decides."""
    options = config.overlap
    if not options.overlap_recompute_auto:
        extras = {
            AUTO_MEMORY: options.overlap_recompute_memory_gib,
            AUTO_PLAN: options.overlap_recompute_auto_plan,
            REPLAN: options.overlap_recompute_replan_interval,
        }
        stray = next((flag for flag, value in extras.items() if value is not None), None)
        require(stray is None, f"{stray} without {AUTO}", f"{AUTO} with it", f"add {AUTO}, or remove the flag")
        return
    require(
        options.overlap_recompute,
        f"{AUTO} without {SWITCH}",
        f"{SWITCH} with it",
        f"add {SWITCH}, or remove {AUTO}",
    )
    kept, plan = options.overlap_recompute_auto_plan, options.overlap_recompute_plan
    given = {
        "--overlap-recompute-plan": None if plan == kept else plan,
        POLICY: options.overlap_recompute_policy,
        WINDOWS: options.overlap_recompute_windows,
        "--overlap-recompute-prefetch-mib": options.overlap_recompute_prefetch_mib,
    }
    other = next((flag for flag, value in given.items() if value is not None), None)
    require(other is None, f"{AUTO} with {other}", "one of the two", f"remove {other} to let the run plan")
    require(
        options.overlap_recompute_memory_gib is not None or config.distributed.distributed_backend != "gloo",
        f"{AUTO} on a CPU, whose memory ranks share",
        f"a budget for one rank ({AUTO_MEMORY} X)",
        f"add {AUTO_MEMORY}",
    )


def profile_iterations(config: PretrainConfig) -> tuple[int, int]:
    """Iterations before the measured ones, and those."""
    options = config.overlap
    return (
        options.overlap_recompute_profile_warmup or PROFILE_WARMUP,
        options.overlap_recompute_profile_iterations or PROFILE_ITERATIONS,
    )


def delayed_gradients_have_a_window(config: PretrainConfig) -> None:
    """Someone puts them off, and an all-reduce comes that they can hide behind."""
    options, parallel = config.overlap, config.parallel
    if not options.overlap_recompute_delay_wgrad:
        return
    require(
        options.overlap_recompute or options.overlap_recompute_profile is not None,
        f"{DELAY} without {SWITCH}",
        f"{SWITCH}, or {PROFILE}, with it",
        f"add {SWITCH}, or remove {DELAY}",
    )
    require(
        parallel.tensor_model_parallel_size > 1,
        f"{DELAY} with --tensor-model-parallel-size 1, where a layer's backward pass communicates nothing",
        "at least two tensor-parallel ranks",
        f"remove {DELAY}",
    )
    require(
        config.model.transformer_impl != "transformer_engine",
        f"{DELAY} with --transformer-impl transformer_engine, which has linears of its own",
        "--transformer-impl local",
        f"remove {DELAY}, or choose --transformer-impl local",
    )


def _conditions(config: PretrainConfig) -> dict[str, tuple[bool, str, str]]:
    gathers = "gathers the sequence over the tensor-parallel ranks (--sequence-parallel), which a replay would repeat"
    sequence_parallel = config.parallel.sequence_parallel
    keep = "leave it out: all drops what can be dropped"
    rope = config.model.position_embedding_type == "rope"
    return {
        "linear_qkv": (not sequence_parallel, gathers, keep),
        "linear_fc1": (not sequence_parallel or any(config.moe_layer_pattern), gathers, keep),
        "core_attention": (
            config.parallel.context_parallel_size == 1,
            "gathers keys and values over the context-parallel ranks, which a replay would repeat",
            keep,
        ),
        "rotary": (rope, "is not part of a model without --position-embedding-type rope", "leave it out"),
    }


CHECKS: tuple[Check, ...] = (
    options_need_the_switch,
    stock_recompute_is_off,
    policy_can_be_read,
    windows_can_be_read,
    named_units_can_be_dropped,
    auto_has_what_it_needs,
    delayed_gradients_have_a_window,
    profile_is_complete,
)
