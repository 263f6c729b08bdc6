"""Mixture of experts: router, dispatcher and kernels."""

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.pretrain_config import PretrainConfig


def layer_pattern_is_legal(config: PretrainConfig) -> None:
    """--moe-layer-freq is a number or names every layer, and names at least one with experts."""
    require(
        config.moe.num_experts is None or any(config.moe_layer_pattern),
        f"no layer with experts in --moe-layer-freq {config.moe.moe_layer_freq!r}",
        "at least one 1",
        "correct it or remove --num-experts",
    )


def topk_fits_experts(config: PretrainConfig) -> None:
    """A token cannot go to more experts than there are."""
    moe = config.moe
    require(
        moe.num_experts is None or moe.moe_router_topk <= moe.num_experts,
        f"--moe-router-topk {moe.moe_router_topk}",
        f"at most --num-experts {moe.num_experts}",
        "choose fewer",
    )


def softmax_over_one_expert(config: PretrainConfig) -> None:
    """The softmax of a single score is 1 whatever the score: the router would learn nothing."""
    moe = config.moe
    after_choice = moe.moe_router_score_function == "softmax" and not moe.moe_router_pre_softmax
    require(
        moe.num_experts is None
        or moe.moe_router_topk > 1
        or not after_choice
        or moe.moe_router_load_balancing_type == "sinkhorn",
        "--moe-router-topk 1 with a softmax after the choice",
        "a softmax before it: over one expert alone it has no gradient",
        "add --moe-router-pre-softmax",
    )


def balancing_takes_its_options(config: PretrainConfig) -> None:
    """Sinkhorn routing has neither a balancing loss nor a capacity."""
    moe = config.moe
    require(
        moe.moe_router_load_balancing_type != "sinkhorn"
        or (moe.moe_aux_loss_coeff == 0 and moe.moe_expert_capacity_factor is None),
        "--moe-router-load-balancing-type sinkhorn with --moe-aux-loss-coeff or --moe-expert-capacity-factor",
        "neither of them",
        "remove them or balance with aux_loss",
    )


def dense_width_divides(config: PretrainConfig) -> None:
    """Parts of experts and of the shared expert are equal on all ranks."""
    moe, parallel = config.moe, config.parallel
    splits = (
        ("--moe-ffn-hidden-size", config.moe_ffn_hidden_size, parallel.expert_tensor_parallel_size or 1),
        (
            "--moe-shared-expert-intermediate-size",
            moe.moe_shared_expert_intermediate_size or 0,
            parallel.tensor_model_parallel_size,
        ),
    )
    for flag, width, ranks in splits:
        require(
            moe.num_experts is None or width % ranks == 0,
            f"{flag} {width}",
            f"a multiple of the {ranks} ranks that share it",
            "choose another width",
        )


def shared_expert_overlap_needs_alltoall(config: PretrainConfig) -> None:
    """Only that dispatcher leaves time for the shared expert."""
    moe = config.moe
    require(
        not moe.moe_shared_expert_overlap or moe.moe_token_dispatcher_type == "alltoall",
        f"--moe-shared-expert-overlap with --moe-token-dispatcher-type {moe.moe_token_dispatcher_type}",
        "the alltoall dispatcher",
        "choose it or remove --moe-shared-expert-overlap",
    )


def grouped_gemm_needs_transformer_engine(config: PretrainConfig) -> None:
    """The kernel is Transformer Engine's and runs on GPUs only."""
    require(
        not config.moe.moe_grouped_gemm or config.model.transformer_impl == "transformer_engine",
        f"--moe-grouped-gemm with --transformer-impl {config.model.transformer_impl}",
        "--transformer-impl transformer_engine on a GPU: the kernel is Transformer Engine's",
        "remove --moe-grouped-gemm or install Transformer Engine",
    )


def shared_expert_has_no_bias(config: PretrainConfig) -> None:
    """Megatron-Core has shared experts without bias only."""
    require(
        config.moe.moe_shared_expert_intermediate_size is None or config.model.disable_bias_linear,
        "--moe-shared-expert-intermediate-size with biases in linear layers",
        "a shared expert without bias; megatron-core has no other",
        "add --disable-bias-linear",
    )


CHECKS: tuple[Check, ...] = (
    layer_pattern_is_legal,
    topk_fits_experts,
    softmax_over_one_expert,
    balancing_takes_its_options,
    dense_width_divides,
    shared_expert_overlap_needs_alltoall,
    grouped_gemm_needs_transformer_engine,
    shared_expert_has_no_bias,
)
