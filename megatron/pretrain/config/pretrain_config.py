"""The whole configuration of a run."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from megatron.pretrain.config.flags import all_flags, words_of
from megatron.pretrain.config.groups.checkpoint import CheckpointOptions
from megatron.pretrain.config.groups.data import DataOptions
from megatron.pretrain.config.groups.distributed import DistributedOptions
from megatron.pretrain.config.groups.logging import LoggingOptions
from megatron.pretrain.config.groups.model import ModelOptions
from megatron.pretrain.config.groups.moe import MoEOptions
from megatron.pretrain.config.groups.optimizer import OptimizerOptions
from megatron.pretrain.config.groups.overlap import OverlapOptions
from megatron.pretrain.config.groups.parallel import ParallelOptions
from megatron.pretrain.config.groups.precision import PrecisionOptions
from megatron.pretrain.config.groups.recompute import RecomputeOptions
from megatron.pretrain.config.groups.training import TrainingOptions
from megatron.pretrain.config.identity import DERIVED_FIELDS, MODEL_FIELDS, MOE_FIELDS
from megatron.pretrain.config.layout import parse_layout
from megatron.pretrain.config.moe_pattern import moe_layer_pattern
from megatron.pretrain.config.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """All options of a run, one field per group, and this process's place in it."""

    model: ModelOptions
    """Shape and arithmetic of the transformer."""

    moe: MoEOptions
    """Mixture of experts."""

    parallel: ParallelOptions
    """How the model is spread over ranks."""

    training: TrainingOptions
    """Batches, length of the run, evaluation and stopping."""

    optimizer: OptimizerOptions
    """Update rule, schedule and gradient reduction."""

    precision: PrecisionOptions
    """Number formats and loss scaling."""

    recompute: RecomputeOptions
    """Stock activation recomputation."""

    overlap: OverlapOptions
    """Activation recomputation ahead of need."""

    data: DataOptions
    """Training text, tokenizer and loader."""

    checkpoint: CheckpointOptions
    """Saving and resuming."""

    logging: LoggingOptions
    """What a run tells about itself."""

    distributed: DistributedOptions
    """How ranks talk."""

    world: World
    """This process among all processes."""

    notes: tuple[str, ...] = ()
    """What the reader of the log should know: flags without an effect of their own, defaults that were switched off."""

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model (TP x PP x CP)."""
        parallel = self.parallel
        return (
            parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
        )

    @property
    def data_parallel_size(self) -> int:
        """Copies of the model that read different data (DP)."""
        return max(1, self.world.world_size // self.model_parallel_size)

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step."""
        return self.training.global_batch_size or self.training.micro_batch_size * self.data_parallel_size

    @property
    def num_microbatches(self) -> int:
        """Microbatches per optimizer step and data-parallel rank."""
        return self.global_batch_size // (self.training.micro_batch_size * self.data_parallel_size)

    @property
    def train_iters(self) -> int:
        """Optimizer steps of the whole run."""
        samples = self.training.train_samples or 0
        return self.training.train_iters or samples // self.global_batch_size

    @property
    def virtual_pipeline_size(self) -> int | None:
        """Model chunks per pipeline rank; None without interleaving."""
        size = self._virtual_stages()
        return size if size > 1 else None

    @property
    def use_batch_p2p(self) -> bool:
        """Whether pipeline transfers of one moment go out as one batch.

        Not with two interleaved stages: previous and next rank are then the same, and Megatron-Core's batches would
        cross their messages without an error. Not with overlapped transfers either, which Megatron-Core forbids.
        """
        interleaved = self.virtual_pipeline_size is not None
        two_stages = self.parallel.pipeline_model_parallel_size == 2
        return not (interleaved and (two_stages or self.parallel.overlap_p2p_communication))

    @property
    def ffn_hidden_size(self) -> int:
        """Inner width of the feed-forward block."""
        default = 4 * self.model.hidden_size
        if self.model.swiglu:
            default = max(64, int(default * 2 / 3 / 64) * 64)
        return self.model.ffn_hidden_size or default

    @property
    def kv_channels(self) -> int:
        """Elements per attention head."""
        return self.model.kv_channels or self.model.hidden_size // self.model.num_attention_heads

    @property
    def num_query_groups(self) -> int:
        """Key and value heads per layer."""
        model = self.model
        return model.num_query_groups if model.group_query_attention else model.num_attention_heads

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence the position embedding can hold, in tokens."""
        return self.model.max_position_embeddings or self.model.seq_length

    @property
    def moe_ffn_hidden_size(self) -> int:
        """Inner width of one expert."""
        return self.moe.moe_ffn_hidden_size or self.ffn_hidden_size

    @property
    def moe_layer_pattern(self) -> tuple[int, ...]:
        """One number per layer: 1 with experts, 0 dense."""
        if self.moe.num_experts is None:
            return (0,) * self.model.num_layers
        return moe_layer_pattern(self.moe.moe_layer_freq, self.model.num_layers)

    @property
    def bias_activation_fusion(self) -> bool:
        """Whether bias and activation are one kernel; there is none for squared ReLU, nor for GELU without bias."""
        model = self.model
        if model.swiglu:
            return model.bias_swiglu_fusion
        return model.bias_gelu_fusion and not model.squared_relu and not model.disable_bias_linear

    @property
    def params_dtype_name(self) -> str:
        """Name of the number format of weights and activations in torch: float32, bfloat16 or float16."""
        names = {(True, False): "bfloat16", (False, True): "float16"}
        return names.get((self.precision.bf16, self.precision.fp16), "float32")

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Group name -> field name -> value, fit for JSON; without this process's place and the notes."""
        return {
            name: {
                flag.field_name: _plain(getattr(getattr(self, name), flag.field_name)) for flag in all_flags(options)
            }
            for name, options in GROUPS
        }

    def to_argv(self) -> list[str]:
        """The shortest command line that gives this configuration, settled values included."""
        return [
            word
            for name, options in GROUPS
            for flag in all_flags(options)
            for word in words_of(flag, getattr(getattr(self, name), flag.field_name))
        ]

    def identity(self) -> dict[str, Any]:
        """What makes the model the one it is, fit for JSON: a checkpoint with another identity is of another model."""
        shape = {name: getattr(self.model, name) for name in MODEL_FIELDS}
        shape |= {name: getattr(self, name) for name in DERIVED_FIELDS}
        shape["add_qkv_bias"] = self.model.add_qkv_bias or not self.model.disable_bias_linear
        if self.model.position_embedding_type == "learned_absolute":
            shape["max_position_embeddings"] = self.max_position_embeddings
        if self.moe.num_experts is not None:
            shape |= {name: getattr(self.moe, name) for name in MOE_FIELDS}
            shape |= {
                "moe_ffn_hidden_size": self.moe_ffn_hidden_size,
                "moe_layer_pattern": list(self.moe_layer_pattern),
            }
        return shape

    def _virtual_stages(self) -> int:
        parallel = self.parallel
        stages = parallel.pipeline_model_parallel_size
        if parallel.pipeline_model_parallel_layout is not None:
            return max(1, len(parse_layout(parallel.pipeline_model_parallel_layout)) // stages)
        if parallel.num_layers_per_virtual_pipeline_stage is not None:
            return max(1, self.model.num_layers // (stages * parallel.num_layers_per_virtual_pipeline_stage))
        return parallel.num_virtual_stages_per_pipeline_rank or 1


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


GROUPS: tuple[tuple[str, type], ...] = tuple(
    (field.name, field.type)
    for field in dataclasses.fields(PretrainConfig)
    if isinstance(field.type, type) and field.name not in ("world", "notes")
)
"""Name and dataclass of every group of flags, in the order of the help."""
