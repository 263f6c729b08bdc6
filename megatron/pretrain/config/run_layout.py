"""The layout of a run as profiles and plans write it."""

from megatron.pretrain.config.pretrain_config import PretrainConfig
from megatron.pretrain.config.stages import layers_per_chunk
from overlap_recompute.plan.profile import Layout


def layout_of(config: PretrainConfig) -> Layout:
    """How the run is spread over ranks, and its batch."""
    parallel = config.parallel
    return Layout(
        tensor_parallel=parallel.tensor_model_parallel_size,
        pipeline_parallel=parallel.pipeline_model_parallel_size,
        data_parallel=config.data_parallel_size,
        context_parallel=parallel.context_parallel_size,
        expert_parallel=parallel.expert_model_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        split=layers_per_chunk(config),
        micro_batch=config.training.micro_batch_size,
        sequence=config.model.seq_length,
        microbatches=config.num_microbatches,
    )
