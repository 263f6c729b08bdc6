"""Overlapped recompute."""

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.pretrain_config import PretrainConfig
from overlap_recompute.plan.policy_text import parse_policy

SWITCH = "--overlap-recompute"
POLICY = "--overlap-recompute-policy"


def options_need_the_switch(config: PretrainConfig) -> None:
    """The other flags say how; the switch says whether."""
    options = config.overlap
    given = {
        POLICY: options.overlap_recompute_policy is not None,
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
    named_units_can_be_dropped,
)
