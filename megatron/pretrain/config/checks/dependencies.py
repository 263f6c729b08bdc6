"""Flags that would be ignored: each has an effect only together with another."""

from collections.abc import Callable
from dataclasses import dataclass

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.flags import all_flags
from megatron.pretrain.config.pretrain_config import GROUPS, PretrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """Fields of one group that must keep their defaults unless a condition holds."""

    group: str
    """Name of the group in PretrainConfig."""

    fields: tuple[str, ...]
    """Names of the fields."""

    holds: Callable[[PretrainConfig], bool]
    """The condition."""

    condition: str
    """The condition in words."""


def _is_rope(config: PretrainConfig) -> bool:
    return config.model.position_embedding_type == "rope"


def _warms_up(config: PretrainConfig) -> bool:
    options = config.optimizer
    return bool(options.lr_warmup_iters or options.lr_warmup_samples or options.lr_warmup_fraction)


DEPENDENCIES: tuple[Dependency, ...] = (
    Dependency(
        group="model",
        fields=("num_query_groups",),
        holds=lambda config: config.model.group_query_attention,
        condition="--group-query-attention",
    ),
    Dependency(
        group="model",
        fields=(
            "rotary_base", "rotary_percent", "rotary_interleaved", "rotary_seq_len_interpolation_factor",
            "use_rope_scaling",
        ),
        holds=_is_rope,
        condition="--position-embedding-type rope",
    ),
    Dependency(
        group="model",
        fields=("rope_scaling_factor",),
        holds=lambda config: config.model.use_rope_scaling,
        condition="--use-rope-scaling",
    ),
    Dependency(
        group="model",
        fields=("cross_entropy_fusion_impl",),
        holds=lambda config: config.model.cross_entropy_loss_fusion,
        condition="--cross-entropy-loss-fusion",
    ),
    Dependency(
        group="moe",
        fields=(
            "moe_layer_freq", "moe_ffn_hidden_size", "moe_router_topk", "moe_router_load_balancing_type",
            "moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_router_dtype", "moe_router_score_function",
            "moe_router_pre_softmax", "moe_router_topk_scaling_factor", "moe_router_force_load_balancing",
            "moe_token_dispatcher_type", "moe_expert_capacity_factor", "moe_pad_expert_input_to_capacity",
            "moe_token_drop_policy", "moe_shared_expert_intermediate_size", "moe_shared_expert_overlap",
            "moe_grouped_gemm",
        ),
        holds=lambda config: config.moe.num_experts is not None,
        condition="--num-experts",
    ),
    Dependency(
        group="moe",
        fields=("moe_pad_expert_input_to_capacity", "moe_token_drop_policy"),
        holds=lambda config: config.moe.moe_expert_capacity_factor is not None,
        condition="--moe-expert-capacity-factor",
    ),
    Dependency(
        group="moe",
        fields=("moe_shared_expert_overlap",),
        holds=lambda config: config.moe.moe_shared_expert_intermediate_size is not None,
        condition="--moe-shared-expert-intermediate-size",
    ),
    Dependency(
        group="moe",
        fields=("moe_aux_loss_coeff",),
        holds=lambda config: config.moe.moe_router_load_balancing_type != "none",
        condition="a --moe-router-load-balancing-type other than none",
    ),
    Dependency(
        group="moe",
        fields=("moe_router_score_function", "moe_router_pre_softmax", "moe_router_topk_scaling_factor"),
        holds=lambda config: config.moe.moe_router_load_balancing_type != "sinkhorn",
        condition="a --moe-router-load-balancing-type other than sinkhorn",
    ),
    Dependency(
        group="moe",
        fields=("moe_router_pre_softmax",),
        holds=lambda config: config.moe.moe_router_score_function == "softmax",
        condition="--moe-router-score-function softmax",
    ),
    Dependency(
        group="parallel",
        fields=("expert_model_parallel_size",),
        holds=lambda config: config.moe.num_experts is not None,
        condition="--num-experts",
    ),
    Dependency(
        group="training",
        fields=("manual_gc_interval", "manual_gc_eval"),
        holds=lambda config: config.training.manual_gc,
        condition="--manual-gc",
    ),
    Dependency(
        group="training",
        fields=("empty_unused_memory_level",),
        holds=lambda config: config.distributed.distributed_backend == "nccl",
        condition="GPUs, --distributed-backend nccl",
    ),
    Dependency(
        group="optimizer",
        fields=("sgd_momentum",),
        holds=lambda config: config.optimizer.optimizer == "sgd",
        condition="--optimizer sgd",
    ),
    Dependency(
        group="optimizer",
        fields=("adam_beta1", "adam_beta2", "adam_eps"),
        holds=lambda config: config.optimizer.optimizer == "adam",
        condition="--optimizer adam",
    ),
    Dependency(
        group="optimizer",
        fields=("min_lr", "lr_decay_iters", "lr_decay_samples"),
        holds=lambda config: config.optimizer.lr_decay_style != "constant" or bool(config.optimizer.lr_warmup_fraction),
        condition="a --lr-decay-style other than constant",
    ),
    Dependency(
        group="optimizer",
        fields=("lr_warmup_init",),
        holds=_warms_up,
        condition="a warm-up, such as --lr-warmup-iters",
    ),
    Dependency(
        group="optimizer",
        fields=("ddp_bucket_size",),
        holds=lambda config: config.optimizer.overlap_grad_reduce,
        condition="--overlap-grad-reduce",
    ),
    Dependency(
        group="optimizer",
        fields=("lr_wsd_decay_style",),
        holds=lambda config: config.optimizer.lr_decay_style == "WSD",
        condition="--lr-decay-style WSD",
    ),
    Dependency(
        group="precision",
        fields=("fp16_lm_cross_entropy",),
        holds=lambda config: config.precision.fp16,
        condition="--fp16",
    ),
    Dependency(
        group="precision",
        fields=("initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis"),
        holds=lambda config: config.precision.fp16 and config.precision.loss_scale is None,
        condition="the dynamic loss scale of --fp16 (no --loss-scale)",
    ),
    Dependency(
        group="precision",
        fields=("loss_scale",),
        holds=lambda config: config.precision.fp16 or config.precision.bf16,
        condition="--fp16 or --bf16",
    ),
    Dependency(
        group="checkpoint",
        fields=("save_interval", "async_save", "no_save_optim", "no_save_rng", "ckpt_fully_parallel_save"),
        holds=lambda config: config.checkpoint.save is not None,
        condition="--save",
    ),
    Dependency(
        group="checkpoint",
        fields=(
            "ckpt_step", "no_load_optim", "no_load_rng", "finetune", "exit_on_missing_checkpoint",
            "ckpt_fully_parallel_load",
        ),
        holds=lambda config: config.checkpoint.load is not None,
        condition="--load",
    ),
    Dependency(
        group="logging",
        fields=("timing_log_option", "barrier_with_level_1_timing"),
        holds=lambda config: config.logging.timing_log_level > 0,
        condition="--timing-log-level 1 or 2",
    ),
    Dependency(
        group="logging",
        fields=(
            "tensorboard_log_interval", "tensorboard_queue_size", "log_timers_to_tensorboard",
            "log_loss_scale_to_tensorboard", "log_validation_ppl_to_tensorboard", "log_memory_to_tensorboard",
            "log_world_size_to_tensorboard",
        ),
        holds=lambda config: config.logging.tensorboard_dir is not None or bool(config.logging.wandb_project),
        condition="--tensorboard-dir or --wandb-project",
    ),
    Dependency(
        group="logging",
        fields=("wandb_entity", "wandb_exp_name", "wandb_save_dir"),
        holds=lambda config: bool(config.logging.wandb_project),
        condition="--wandb-project",
    ),
    Dependency(
        group="distributed",
        fields=("gloo_thread_turns", "emulate_link_gbps"),
        holds=lambda config: config.distributed.distributed_backend == "gloo",
        condition="--distributed-backend gloo",
    ),
    Dependency(
        group="distributed",
        fields=("emulate_link_latency_us",),
        holds=lambda config: config.distributed.emulate_link_gbps is not None,
        condition="--emulate-link-gbps",
    ),
)  # fmt: skip


def no_flag_is_ignored(config: PretrainConfig) -> None:
    """A flag that changes nothing is a misunderstanding."""
    groups = dict(GROUPS)
    for dependency in DEPENDENCIES:
        if dependency.holds(config):
            continue
        options = getattr(config, dependency.group)
        flags = {flag.field_name: flag for flag in all_flags(groups[dependency.group])}
        changed = [flags[name].name for name in dependency.fields if getattr(options, name) != flags[name].default]
        require(
            not changed,
            f"{', '.join(changed)} without {dependency.condition}",
            f"{dependency.condition}: without it {changed[0] if changed else ''} has no effect",
            f"give {dependency.condition}, or remove {' and '.join(changed)}",
        )


CHECKS: tuple[Check, ...] = (no_flag_is_ignored,)
