"""From the run's options to megatron-core's TransformerConfig."""

from typing import Any

import torch
from megatron.core.activations import squared_relu
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.functional import gelu, silu

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.model.support import runs_on_cpu, uses_transformer_engine
from overlap_recompute.plan.errors import ConfigError


def build_transformer_config(config: PretrainConfig) -> TransformerConfig:
    """Map the options to `megatron/core/transformer/transformer_config.py` (0.16.1).

    Needs no process group.

    Raises:
        ConfigError: a combination that cannot run here, or that megatron-core refuses.
    """
    values = {
        **_shape(config),
        **_parallelism(config),
        **_precision(config),
        **_fusions(config),
        **_experts(config),
        **_recompute(config),
    }
    try:
        return TransformerConfig(**values)
    except (ValueError, AssertionError) as error:
        raise ConfigError(
            found=f"options that megatron-core refuses ({error})",
            expected="a consistent set of options",
            next_step="change the options that the message names",
        ) from error


def _shape(config: PretrainConfig) -> dict[str, Any]:
    model = config.model
    activation = silu if model.swiglu else squared_relu if model.squared_relu else gelu
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": config.num_query_groups,
        "ffn_hidden_size": config.ffn_hidden_size,
        "kv_channels": config.kv_channels,
        "rotary_interleaved": model.rotary_interleaved,
        "normalization": model.normalization,
        "layernorm_epsilon": model.norm_epsilon,
        "qk_layernorm": model.qk_layernorm,
        "gated_linear_unit": model.swiglu,
        "activation_func": activation,
        "add_bias_linear": not model.disable_bias_linear,
        "add_qkv_bias": model.add_qkv_bias,
        "attention_dropout": model.attention_dropout,
        "hidden_dropout": model.hidden_dropout,
        "init_method_std": model.init_method_std,
        "use_cpu_initialization": model.use_cpu_initialization,
        "transformer_impl": model.transformer_impl,
        # Only Transformer Engine reads it from here (through environment variables of the whole process); layers
        # without it get their attention from `build_block_spec`.
        "attention_backend": AttnBackend[model.attention_backend]
        if uses_transformer_engine(config)
        else AttnBackend.auto,
        "deterministic_mode": config.training.deterministic_mode,
    }


def _parallelism(config: PretrainConfig) -> dict[str, Any]:
    parallel = config.parallel
    overlapped = config.virtual_pipeline_size is not None and parallel.overlap_p2p_communication
    stock_context_parallel = parallel.context_parallel_size > 1 and uses_transformer_engine(config)
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "sequence_parallel": parallel.sequence_parallel,
        "context_parallel_size": parallel.context_parallel_size,
        "cp_comm_type": "p2p" if stock_context_parallel else None,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": config.virtual_pipeline_size,
        "pipeline_model_parallel_layout": parallel.pipeline_model_parallel_layout,
        "num_layers_in_first_pipeline_stage": parallel.decoder_first_pipeline_num_layers,
        "num_layers_in_last_pipeline_stage": parallel.decoder_last_pipeline_num_layers,
        "overlap_p2p_comm": overlapped,
        "batch_p2p_comm": config.use_batch_p2p,
        # Stock's overlapped schedule empties an output while it is being sent. NCCL's stream order forgives that; gloo
        # reads the memory later and would send whatever then lies there. Our own schedules keep it until it is sent.
        "deallocate_pipeline_outputs": parallel.schedule_impl == "overlap" or not (overlapped and runs_on_cpu(config)),
        "expert_model_parallel_size": parallel.expert_model_parallel_size,
        "expert_tensor_parallel_size": parallel.expert_tensor_parallel_size,
    }


def _precision(config: PretrainConfig) -> dict[str, Any]:
    dtype = getattr(torch, config.params_dtype_name)
    return {
        "bf16": config.precision.bf16,
        "fp16": config.precision.fp16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "attention_softmax_in_fp32": config.precision.attention_softmax_in_fp32,
    }


def _fusions(config: PretrainConfig) -> dict[str, Any]:
    model = config.model
    # megatron-core's fused GELU cannot weigh an expert's output, and its fused SwiGLU for experts takes no bias: both
    # would fail in the first step.
    none_for_experts = config.moe.num_experts is not None and not (model.swiglu and model.disable_bias_linear)
    return {
        "bias_activation_fusion": config.bias_activation_fusion and not none_for_experts,
        "bias_dropout_fusion": model.bias_dropout_fusion,
        "masked_softmax_fusion": model.masked_softmax_fusion,
        "apply_rope_fusion": model.rope_fusion,
        "gradient_accumulation_fusion": model.gradient_accumulation_fusion,
        "cross_entropy_loss_fusion": model.cross_entropy_loss_fusion,
        "cross_entropy_fusion_impl": model.cross_entropy_fusion_impl,
    }


def _experts(config: PretrainConfig) -> dict[str, Any]:
    moe = config.moe
    if moe.num_experts is None:
        return {}
    same_name = (
        "moe_router_topk", "moe_router_load_balancing_type", "moe_aux_loss_coeff", "moe_z_loss_coeff",
        "moe_router_dtype", "moe_router_score_function", "moe_router_pre_softmax", "moe_router_topk_scaling_factor",
        "moe_router_force_load_balancing", "moe_token_dispatcher_type", "moe_expert_capacity_factor",
        "moe_pad_expert_input_to_capacity", "moe_token_drop_policy", "moe_shared_expert_intermediate_size",
        "moe_shared_expert_overlap", "moe_grouped_gemm",
    )  # fmt: skip
    pattern = config.moe_layer_pattern
    return {
        **{name: getattr(moe, name) for name in same_name},
        "num_moe_experts": moe.num_experts,
        # The number 1, not a list of ones: layers of one kind are stored as one tensor in checkpoints.
        "moe_layer_freq": 1 if all(pattern) else list(pattern),
        "moe_ffn_hidden_size": config.moe_ffn_hidden_size,
    }


def _recompute(config: PretrainConfig) -> dict[str, Any]:
    options = config.recompute
    return {
        "recompute_granularity": options.recompute_granularity,
        "recompute_method": options.recompute_method,
        "recompute_num_layers": options.recompute_num_layers,
        "recompute_modules": list(options.recompute_modules) if options.recompute_modules else None,
        "distribute_saved_activations": options.distribute_saved_activations,
    }
