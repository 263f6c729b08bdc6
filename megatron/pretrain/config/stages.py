"""How many transformer layers each pipeline stage holds."""

from megatron.pretrain.config.layout import parse_layout
from megatron.pretrain.config.pretrain_config import PretrainConfig


def layers_per_chunk(config: PretrainConfig) -> tuple[tuple[int, ...], ...]:
    """Transformer layers of each model chunk: one tuple per pipeline rank, one number per virtual stage.

    Assumes a configuration that `validate` accepts.
    """
    parallel = config.parallel
    ranks, chunks = parallel.pipeline_model_parallel_size, config.virtual_pipeline_size or 1
    if parallel.pipeline_model_parallel_layout is not None:
        stages = parse_layout(parallel.pipeline_model_parallel_layout)
        return tuple(tuple(stages[chunk * ranks + rank].count("t") for chunk in range(chunks)) for rank in range(ranks))
    return tuple((count // chunks,) * chunks for count in layers_per_rank(config))


def layers_per_rank(config: PretrainConfig) -> tuple[int, ...]:
    """Transformer layers of each pipeline rank when no layout is given; rounds down where the split is not even."""
    parallel = config.parallel
    first, last = parallel.decoder_first_pipeline_num_layers, parallel.decoder_last_pipeline_num_layers
    ranks = parallel.pipeline_model_parallel_size
    middle_ranks = ranks - (first is not None) - (last is not None)
    middle_layers = config.model.num_layers - (first or 0) - (last or 0)
    middle = (middle_layers // middle_ranks,) * middle_ranks if middle_ranks > 0 else ()
    ends = [(count,) if count is not None else () for count in (first, last)]
    return (*ends[0], *middle, *ends[1])
