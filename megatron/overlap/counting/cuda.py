"""What the kernels of a GPU save in place of what was counted on a CPU.

Autograd refuses fake CUDA tensors where torch was built without CUDA, so the rows of dense layers come from the table
of `overlap_recompute/plan/kept_bytes.py`, which has a GPU's kernels. Ends and gradients on their way stay as counted;
of held storages of no unit, which are others on a GPU, none counts as gone before the layer's backward pass is over.
"""

from dataclasses import replace

from megatron.pretrain.config import PretrainConfig
from overlap_recompute.plan.counted import CountedModel
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.kept_bytes import CPU, CUDA, FLASH, FP32_BYTES, MATH, UNFUSED, LayerShape, storage_rows
from overlap_recompute.plan.storages import BackwardMemory

_HALF_BYTES = 2


def as_on_cuda(counted: CountedModel, config: PretrainConfig) -> CountedModel:
    """The same model with the storages that a GPU would keep.

    Raises:
        ConfigError: layers for which there is no table.
    """
    if config.moe.num_experts is not None or config.recompute.recompute_granularity == "selective":
        raise ConfigError(
            "--device cuda with experts or selective recomputation",
            "dense layers, kept, recomputed as a whole or by units",
            "count with --device cpu",
        )
    rows = storage_rows(shape_of_layer(config, CUDA))
    kinds = tuple(
        replace(kind, storages=rows, backward_memory=_without_room(kind.backward_memory)) for kind in counted.kinds
    )
    return replace(counted, device=CUDA, kinds=kinds)


def _without_room(memory: BackwardMemory | None) -> BackwardMemory | None:
    if memory is None:
        return None
    return replace(memory, steps=tuple(replace(step, freed_bytes=0) for step in memory.steps))


def shape_of_layer(config: PretrainConfig, backend: str = CPU) -> LayerShape:
    """A dense layer of the local specification as the table wants it."""
    model, parallel = config.model, config.parallel
    dropout = model.attention_dropout > 0
    core = MATH if dropout and backend == CPU else FLASH
    return LayerShape(
        sequence=model.seq_length // parallel.context_parallel_size,
        micro_batch=config.training.micro_batch_size,
        hidden=model.hidden_size,
        ffn_hidden=config.ffn_hidden_size,
        heads=model.num_attention_heads,
        groups=config.num_query_groups,
        channels=config.kv_channels,
        element_bytes=FP32_BYTES if config.params_dtype_name == "float32" else _HALF_BYTES,
        rms_norm=model.normalization == "RMSNorm",
        rotary=model.position_embedding_type == "rope",
        gated=model.swiglu,
        biased=not model.disable_bias_linear,
        fused_activation=config.bias_activation_fusion,
        core=core if model.attention_backend in ("auto", "flash") else UNFUSED,
        attention_dropout=dropout,
        hidden_dropout=model.hidden_dropout > 0,
        tensor_parallel=parallel.tensor_model_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        backend=backend,
    )
