"""Ranks, sequences and experts."""

from megatron.pretrain.config.checks.common import Check, neighbours, require
from megatron.pretrain.config.pretrain_config import PretrainConfig


def world_fits_the_model(config: PretrainConfig) -> None:
    """The ranks hold a whole number of copies of the model."""
    size, ranks = config.model_parallel_size, config.world.world_size
    parallel = config.parallel
    require(
        ranks % size == 0,
        f"{ranks} ranks",
        f"a multiple of {size} (TP {parallel.tensor_model_parallel_size} x PP "
        f"{parallel.pipeline_model_parallel_size} x CP {parallel.context_parallel_size})",
        f"start {neighbours(ranks, size)} ranks, or choose smaller parallel sizes",
    )


def sequence_parallel_divides_the_sequence(config: PretrainConfig) -> None:
    """Every tensor-parallel rank holds the same part of each context-parallel rank's sequence."""
    parallel, length = config.parallel, config.model.seq_length
    unit = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    require(
        not parallel.sequence_parallel or length % unit == 0,
        f"--seq-length {length} with --sequence-parallel",
        f"a multiple of {unit} (tensor-parallel x context-parallel size)",
        f"choose {neighbours(length, unit)} tokens",
    )


def context_parallel_divides_the_sequence(config: PretrainConfig) -> None:
    """Every rank holds two pieces, one from each half, so that all have the same work under a causal mask."""
    ranks, length = config.parallel.context_parallel_size, config.model.seq_length
    require(
        ranks == 1 or length % (2 * ranks) == 0,
        f"--seq-length {length} with --context-parallel-size {ranks}",
        f"a multiple of {2 * ranks} (two pieces per rank)",
        f"choose {neighbours(length, 2 * ranks)} tokens",
    )


def experts_split_over_ranks(config: PretrainConfig) -> None:
    """Every expert-parallel rank holds the same number of experts."""
    experts, ranks = config.moe.num_experts, config.parallel.expert_model_parallel_size
    require(
        experts is None or experts % ranks == 0,
        f"--num-experts {experts}",
        f"a multiple of --expert-model-parallel-size {ranks}",
        f"choose {neighbours(experts or 1, ranks)} experts",
    )


def expert_tensor_parallel_needs_experts(config: PretrainConfig) -> None:
    """A dense model has no experts to split; what was not given is the tensor-parallel size by now."""
    parallel = config.parallel
    size, tensor_parallel = parallel.expert_tensor_parallel_size, parallel.tensor_model_parallel_size
    require(
        config.moe.num_experts is not None or size in (None, tensor_parallel),
        f"--expert-tensor-parallel-size {size} without --num-experts",
        "--num-experts: without it the flag has no effect",
        "give --num-experts, or remove it",
    )


def expert_ranks_fit_the_world(config: PretrainConfig) -> None:
    """Expert groups are cut from the ranks of one pipeline stage."""
    if config.moe.num_experts is None:
        return
    parallel = config.parallel
    unit = (parallel.expert_tensor_parallel_size or 1) * parallel.expert_model_parallel_size
    stage = config.world.world_size // parallel.pipeline_model_parallel_size
    require(
        stage % unit == 0,
        f"{stage} ranks per pipeline stage",
        f"a multiple of {unit} (expert-tensor-parallel x expert-parallel size)",
        "choose a smaller --expert-model-parallel-size or start more ranks",
    )


def expert_tensor_parallel_on_gloo(config: PretrainConfig) -> None:
    """Splitting one expert makes token counts per rank unequal, and gloo gathers only equal sizes."""
    size = config.parallel.expert_tensor_parallel_size or 1
    on_gloo = config.distributed.distributed_backend == "gloo"
    require(
        config.moe.num_experts is None or not on_gloo or size == 1,
        f"--expert-tensor-parallel-size {size} with --distributed-backend gloo",
        "1: gloo gathers only tensors of equal size",
        "remove the flag or train on GPUs with nccl",
    )


def expert_bias_is_not_split(config: PretrainConfig) -> None:
    """Megatron-Core adds an expert's bias once per rank that holds a part of the expert."""
    size = config.parallel.expert_tensor_parallel_size or 1
    require(
        config.moe.num_experts is None or size == 1 or config.model.disable_bias_linear,
        f"experts with bias and an expert-tensor-parallel size of {size}",
        "experts without bias, or whole experts",
        "add --disable-bias-linear or --expert-tensor-parallel-size 1",
    )


def experts_with_tensor_parallel_need_sequence_parallel(config: PretrainConfig) -> None:
    """Without it every tensor-parallel rank would send the same tokens, which Megatron-Core refuses to train."""
    ranks = config.parallel.tensor_model_parallel_size
    require(
        config.moe.num_experts is None or ranks == 1 or config.parallel.sequence_parallel,
        f"--num-experts {config.moe.num_experts} with --tensor-model-parallel-size {ranks} alone",
        "--sequence-parallel with experts and tensor parallelism",
        "add --sequence-parallel",
    )


def context_parallel_attention(config: PretrainConfig) -> None:
    """Without Transformer Engine only the flash attention of this project gathers keys and values over ranks."""
    ranks, backend = config.parallel.context_parallel_size, config.model.attention_backend
    unfused = backend in ("unfused", "local") and config.model.transformer_impl != "transformer_engine"
    require(
        ranks == 1 or not unfused,
        f"--context-parallel-size {ranks} with --attention-backend {backend}",
        "an attention that can gather keys and values over ranks",
        "use --attention-backend flash, or --context-parallel-size 1",
    )


CHECKS: tuple[Check, ...] = (
    world_fits_the_model,
    sequence_parallel_divides_the_sequence,
    context_parallel_divides_the_sequence,
    context_parallel_attention,
    experts_split_over_ranks,
    expert_tensor_parallel_needs_experts,
    expert_ranks_fit_the_world,
    expert_tensor_parallel_on_gloo,
    expert_bias_is_not_split,
    experts_with_tensor_parallel_need_sequence_parallel,
)
