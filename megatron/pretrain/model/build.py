"""The model chunks of this rank: GPT, half precision, data parallelism."""

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.model.expert_parameters import correct_expert_marks
from megatron.pretrain.model.initialization import initialize_by_name, untouched_generators
from megatron.pretrain.model.layer_spec import build_block_spec


def build_model(
    config: PretrainConfig, transformer_config: TransformerConfig, padded_vocab_size: int, device: torch.device
) -> list[DistributedDataParallel]:
    """Build this rank's part of the model, with initial weights, ready for the optimizer.

    With `use_cpu_initialization` (always on the CPU) weights depend on the seed and their names alone, and no random
    generator is changed; otherwise megatron-core draws them on the GPU and rank 0 of each data-parallel group
    broadcasts its own. `transformer_config` gets the functions that the pipeline schedules call around gradients.

    Args:
        config: the run's options.
        transformer_config: what `build_transformer_config` made of them.
        padded_vocab_size: rows of the embedding, a multiple of the tensor-parallel size.
        device: what `install_platform` returned.

    Returns:
        One wrapped GPTModel per virtual pipeline stage, in order; one without interleaving.

    megatron-core's process groups and seeds (`model_parallel_cuda_manual_seed`) must be set.
    """
    if transformer_config.deterministic_mode:
        torch.use_deterministic_algorithms(True)
    stages = range(config.virtual_pipeline_size) if config.virtual_pipeline_size else (None,)
    if transformer_config.use_cpu_initialization:
        with untouched_generators():
            chunks = [gpt_chunk(config, transformer_config, padded_vocab_size, stage) for stage in stages]
        initialize_by_name(chunks, transformer_config, config.training.seed)
    else:
        chunks = [gpt_chunk(config, transformer_config, padded_vocab_size, stage) for stage in stages]
    wrapped = [
        _data_parallel(config, transformer_config, chunk.to(device), index) for index, chunk in enumerate(chunks)
    ]
    if not transformer_config.use_cpu_initialization:
        for model in wrapped:
            model.broadcast_params()
    _connect_schedules(config, transformer_config, wrapped)
    return wrapped


def gpt_chunk(
    config: PretrainConfig, transformer_config: TransformerConfig, vocab_size: int, stage: int | None
) -> GPTModel:
    """One bare model chunk with Megatron-Core's own initial weights; arguments as those of `build_model`.

    `stage` is the virtual pipeline stage; None without interleaving.
    """
    model = config.model
    chunk = GPTModel(
        config=transformer_config,
        transformer_layer_spec=build_block_spec(config, transformer_config, stage),
        vocab_size=vocab_size,
        max_sequence_length=config.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
        fp16_lm_cross_entropy=config.precision.fp16_lm_cross_entropy,
        share_embeddings_and_output_weights=not model.untie_embeddings_and_output_weights,
        position_embedding_type=model.position_embedding_type,
        rotary_percent=model.rotary_percent,
        rotary_base=model.rotary_base,
        rope_scaling=model.use_rope_scaling,
        rope_scaling_factor=model.rope_scaling_factor,
        seq_len_interpolation_factor=model.rotary_seq_len_interpolation_factor,
        vp_stage=stage,
    )
    for parameter in chunk.parameters():
        tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
    correct_expert_marks(chunk, transformer_config)
    return chunk


def _data_parallel(
    config: PretrainConfig, transformer_config: TransformerConfig, chunk: GPTModel, index: int
) -> DistributedDataParallel:
    half = transformer_config.fp16 or transformer_config.bf16
    return DistributedDataParallel(
        config=transformer_config,
        # A fresh one per chunk: DistributedDataParallel writes its bucket size into it.
        ddp_config=build_ddp_config(config),
        module=Float16Module(transformer_config, chunk) if half else chunk,
        # Gradients of later chunks are complete while earlier ones still compute: no need to cut them up.
        disable_bucketing=index > 0,
    )


def build_ddp_config(config: PretrainConfig) -> DistributedDataParallelConfig:
    """Map the options to `megatron/core/distributed/distributed_data_parallel_config.py` (0.16.1)."""
    optimizer = config.optimizer
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=config.precision.accumulate_allreduce_grads_in_fp32,
        overlap_grad_reduce=optimizer.overlap_grad_reduce,
        overlap_param_gather=optimizer.overlap_param_gather,
        use_distributed_optimizer=optimizer.use_distributed_optimizer,
        bucket_size=optimizer.ddp_bucket_size,
        average_in_collective=optimizer.ddp_average_in_collective,
        check_for_nan_in_grad=config.training.check_for_nan_in_loss_and_grad,
    )


def _connect_schedules(
    config: PretrainConfig, transformer_config: TransformerConfig, model: list[DistributedDataParallel]
) -> None:
    """Tell the pipeline schedules how to hold back, start and finish gradient and parameter communication.

    As Megatron-LM does by default: with a pipeline all stages start their gradients' reduction at the same moment of
    the schedule, and with interleaving also the gathering of parameters; else each bucket starts as soon as it can.
    """
    pipeline = config.parallel.pipeline_model_parallel_size > 1
    if config.optimizer.overlap_grad_reduce:
        transformer_config.no_sync_func = _one_or_all([chunk.no_sync for chunk in model])
        if pipeline:
            transformer_config.grad_sync_func = _one_or_all([chunk.start_grad_sync for chunk in model])
    if config.optimizer.overlap_param_gather and config.virtual_pipeline_size:
        transformer_config.param_sync_func = [chunk.start_param_sync for chunk in model]
    transformer_config.finalize_model_grads_func = finalize_model_grads


def _one_or_all(functions: list) -> object:
    return functions[0] if len(functions) == 1 else functions
