"""Values that follow from other values, filled in once so that everybody reads the same.

Each resolver takes a configuration and returns it with one thing settled, and a note for the log where the reader would
otherwise be surprised. They never refuse: `validate` does.
"""

import importlib.util
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from megatron.pretrain.config.kept_plan import file_of_split, follow_kept_plan, says_where_layers_go
from megatron.pretrain.config.pretrain_config import PretrainConfig
from overlap_recompute.plan.codec import FileError
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.split import layout_text
from overlap_recompute.plan.validation import read_plan

Resolver = Callable[[PretrainConfig], tuple[PretrainConfig, str | None]]

DEFAULT_SPLIT = "969,30,1"


def resolve(config: PretrainConfig) -> PretrainConfig:
    """Fill in what follows from the given values; resolving twice changes nothing.

    Raises:
        ConfigError: a file or an expression that a value comes from cannot be read.
    """
    for resolver in RESOLVERS:
        config, note = resolver(config)
        if note:
            config = replace(config, notes=(*config.notes, note))
    return config


def has_module(name: str) -> bool:
    """Whether a module is installed, and not hidden as on the CPU platform; without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _set(config: PretrainConfig, group: str, **values: Any) -> PretrainConfig:
    return replace(config, **{group: replace(getattr(config, group), **values)})


def _on_cpu(config: PretrainConfig) -> bool:
    return config.distributed.distributed_backend == "gloo"


def _shape(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    """The defaults of Megatron-LM that depend on other sizes. An uneven head size is left for `validate` to refuse."""
    model = config.model
    even = model.hidden_size % model.num_attention_heads == 0
    shape = {
        "ffn_hidden_size": config.ffn_hidden_size,
        "kv_channels": config.kv_channels if even else model.kv_channels,
        "max_position_embeddings": config.max_position_embeddings,
    }
    return _set(config, "model", **shape), None


def _transformer_impl(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    if config.model.transformer_impl is not None:
        return config, None
    engine = not _on_cpu(config) and has_module("transformer_engine")
    note = "Transformer Engine is installed and is used; --transformer-impl local does without"
    absent = None if _on_cpu(config) else "Transformer Engine is not installed: layers are Megatron-Core's own"
    chosen = _set(config, "model", transformer_impl="transformer_engine" if engine else "local")
    return chosen, note if engine else absent


def _sequence_parallel(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    if not config.parallel.sequence_parallel or config.parallel.tensor_model_parallel_size > 1:
        return config, None
    note = "--sequence-parallel is off: it needs --tensor-model-parallel-size of at least 2"
    return _set(config, "parallel", sequence_parallel=False), note


def _schedule_impl(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    ours = config.overlap.overlap_recompute and config.parallel.pipeline_model_parallel_size > 1
    if config.parallel.schedule_impl is not None:
        plans = ours and config.parallel.schedule_impl == "stock" and config.overlap.overlap_recompute_auto
        note = "--schedule-impl stock fills no wait for another stage: units that plans put there come back elsewhere"
        return config, note if plans and note not in config.notes else None
    note = "--schedule-impl is overlap: its waits for other stages can be filled with recompute; stock opens none"
    return _set(config, "parallel", schedule_impl="overlap" if ours else "stock"), note if ours else None


def _plan_layout(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    """Layers go to the stages that the plan was made for, unless flags say where they go."""
    file, stages = file_of_split(config), config.parallel.pipeline_model_parallel_size
    if file is None or stages == 1 or says_where_layers_go(config):
        return config, None
    try:
        split = read_plan(file).layout.split
    except FileError:
        return config, None  # left for `validate` to refuse
    layers = config.model.num_layers
    even = ((layers // stages,),) * stages
    if len(split) != stages or sum(map(sum, split)) != layers or (split == even and layers % stages == 0):
        return config, None
    layout = layout_text(split)
    note = f"--pipeline-model-parallel-layout is {layout}, as in {file}"
    return _set(config, "parallel", pipeline_model_parallel_layout=layout), note


def _expert_tensor_parallel(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    tensor_parallel = config.parallel.tensor_model_parallel_size
    if config.parallel.expert_tensor_parallel_size is not None:
        return config, None
    if config.moe.num_experts is None or not _on_cpu(config):
        return _set(config, "parallel", expert_tensor_parallel_size=tensor_parallel), None
    note = "--expert-tensor-parallel-size is 1: gloo gathers only tensors of equal size"
    return _set(config, "parallel", expert_tensor_parallel_size=1), note if tensor_parallel > 1 else None


def _moe_ffn_hidden_size(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    if config.moe.num_experts is None or config.moe.moe_ffn_hidden_size is not None:
        return config, None
    return _set(config, "moe", moe_ffn_hidden_size=config.ffn_hidden_size), None


def _global_batch_size(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    if config.training.global_batch_size is not None:
        return config, None
    size = config.global_batch_size
    return _set(config, "training", global_batch_size=size), f"--global-batch-size is {size}: micro batch x DP"


def _train_iters(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    samples = config.training.train_samples
    if samples is None or config.training.train_iters is not None or config.train_iters < 1:
        return config, None
    iterations = config.train_iters
    note = f"{iterations} iterations: {samples} samples / global batch {config.global_batch_size}"
    return _set(config, "training", train_iters=iterations), note


def _gradients_in_fp32(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    precision = config.precision
    if not precision.bf16 or precision.grad_reduce_in_bf16 or precision.accumulate_allreduce_grads_in_fp32:
        return config, None
    note = "gradients are accumulated and reduced in fp32, as always with --bf16; --grad-reduce-in-bf16 changes it"
    return _set(config, "precision", accumulate_allreduce_grads_in_fp32=True), note


def _nan_check(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    dynamic = config.precision.fp16 and config.precision.loss_scale is None
    if not dynamic or not config.training.check_for_nan_in_loss_and_grad:
        return config, None
    note = "the check for NaN is off: the dynamic loss scale of --fp16 handles them"
    return _set(config, "training", check_for_nan_in_loss_and_grad=False), note


def _masked_softmax_fusion(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    return _without_kernel(config, "masked_softmax_fusion", "scaled_upper_triang_masked_softmax_cuda")


def _gradient_accumulation_fusion(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    if config.model.transformer_impl == "transformer_engine" and not _on_cpu(config):
        return config, None
    return _without_kernel(config, "gradient_accumulation_fusion", "fused_weight_gradient_mlp_cuda")


def _without_kernel(config: PretrainConfig, field: str, kernel: str) -> tuple[PretrainConfig, str | None]:
    """Switch off a fusion whose CUDA kernel is not there: Megatron-Core would fail in the first step."""
    if not getattr(config.model, field) or (not _on_cpu(config) and has_module(kernel)):
        return config, None
    reason = "on a CPU" if _on_cpu(config) else f"{kernel} (Apex) is not installed"
    return _set(config, "model", **{field: False}), f"{field.replace('_', ' ')} is off: {reason}"


def _rope_fusion(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    uses_rope = config.model.position_embedding_type == "rope"
    installed = not _on_cpu(config) and has_module("transformer_engine")
    if not config.model.rope_fusion or (uses_rope and installed):
        return config, None
    note = "rope fusion is off: " + ("on a CPU" if _on_cpu(config) else "Transformer Engine is not installed")
    return _set(config, "model", rope_fusion=False), note if uses_rope else None


def _cpu_initialization(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    return (_set(config, "model", use_cpu_initialization=True) if _on_cpu(config) else config), None


def _recompute_modules(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    selective = config.recompute.recompute_granularity == "selective"
    if not selective or config.recompute.recompute_modules is not None:
        return config, None
    return _set(config, "recompute", recompute_modules=("core_attn",)), None


def _skip_train(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    if not config.training.skip_train or config.checkpoint.load is None or config.checkpoint.no_load_optim:
        return config, None
    return _set(config, "checkpoint", no_load_optim=True), "the optimizer is not loaded: --skip-train needs none"


def _data_args_path(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    path = config.data.data_args_path
    if path is None or config.data.data_path is not None:
        return config, None
    try:
        with open(path, encoding="utf-8") as stream:
            words = tuple(shlex.split(stream.read(), comments=True))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--data-args-path {path}: {error}", "a text file with the words of --data-path", "correct the path or file"
        ) from None
    return _set(config, "data", data_path=words), f"--data-path has {len(words)} words from {path}"


def _split(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    data = config.data
    if data.split is not None or not (data.mock_data or data.data_path):
        return config, None
    return _set(config, "data", split=DEFAULT_SPLIT), None if data.mock_data else f"--split is {DEFAULT_SPLIT}"


def _tokenizer_type(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    if config.data.tokenizer_type is not None or not config.data.mock_data:
        return config, None
    return _set(config, "data", tokenizer_type="NullTokenizer"), None


def _emulated_link(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    """Settles nothing: the note labels the log and the metrics file."""
    options = config.distributed
    if options.emulate_link_gbps is None:
        return config, None
    note = (
        f"the link between ranks is emulated, {options.emulate_link_gbps:g} Gbit/s each way and "
        f"{options.emulate_link_latency_us:g} us: times are not those of a network"
    )
    return config, None if note in config.notes else note


RESOLVERS: tuple[Resolver, ...] = (
    _shape,
    _transformer_impl,
    _sequence_parallel,
    _schedule_impl,
    follow_kept_plan,
    _plan_layout,
    _expert_tensor_parallel,
    _moe_ffn_hidden_size,
    _global_batch_size,
    _train_iters,
    _gradients_in_fp32,
    _nan_check,
    _masked_softmax_fusion,
    _gradient_accumulation_fusion,
    _rope_fusion,
    _cpu_initialization,
    _recompute_modules,
    _skip_train,
    _data_args_path,
    _split,
    _tokenizer_type,
    _emulated_link,
)
