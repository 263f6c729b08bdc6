"""How the model is spread over ranks."""

from dataclasses import dataclass
from typing import Literal

from megatron.pretrain.config.ranges import PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelOptions:
    """Parallelism: how layers, tensors, sequences and experts are spread over ranks."""

    tensor_model_parallel_size: PositiveInt = 1
    """Ranks that share each layer's tensors (TP)."""

    pipeline_model_parallel_size: PositiveInt = 1
    """Pipeline stages (PP)."""

    num_layers_per_virtual_pipeline_stage: PositiveInt | None = None
    """Layers per model chunk; gives every pipeline rank several chunks (VPP, interleaved 1F1B)."""

    num_virtual_stages_per_pipeline_rank: PositiveInt | None = None
    """Model chunks per pipeline rank; another way to ask for VPP."""

    pipeline_model_parallel_layout: str | None = None
    """Exact place of every layer, stages divided by "|": E embedding, t transformer layer, L loss, x*n and (x|y)*n
    repeat, as in "Et*3|(tt|)*2tL". More stages than pipeline ranks give VPP."""

    decoder_first_pipeline_num_layers: PositiveInt | None = None
    """Layers of the first pipeline stage, for an uneven split."""

    decoder_last_pipeline_num_layers: PositiveInt | None = None
    """Layers of the last pipeline stage, for an uneven split."""

    overlap_p2p_communication: bool = True
    """Run the interleaved pipeline's transfers beside compute; has an effect only with virtual stages."""

    schedule_impl: Literal["stock", "overlap"] | None = None
    """Own flag. Who runs the pipeline: stock is Megatron-Core's schedules; overlap is action lists with the same passes
    in the same order, whose transfers all start early and end late. The numbers are the same to the bit. When not
    given: overlap for pipelines with --overlap-recompute, whose waits it fills, else stock."""

    sequence_parallel: bool = False
    """Split activations outside attention and feed-forward blocks along the sequence; needs TP > 1."""

    context_parallel_size: PositiveInt = 1
    """Ranks that share each sequence (CP)."""

    expert_model_parallel_size: PositiveInt = 1
    """Ranks that share each MoE layer's experts (EP)."""

    expert_tensor_parallel_size: PositiveInt | None = None
    """Ranks that share each expert's tensors; --tensor-model-parallel-size when not given, 1 with the gloo backend."""
