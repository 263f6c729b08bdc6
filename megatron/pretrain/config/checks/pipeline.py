"""Layers on pipeline stages."""

from megatron.pretrain.config.checks.common import Check, neighbours, require
from megatron.pretrain.config.layout import parse_layout
from megatron.pretrain.config.pretrain_config import PretrainConfig
from megatron.pretrain.config.stages import layers_per_rank

LAYOUT = "--pipeline-model-parallel-layout"


def one_way_to_place_layers(config: PretrainConfig) -> None:
    """The flags that place layers exclude each other."""
    parallel = config.parallel
    ways = {
        LAYOUT: parallel.pipeline_model_parallel_layout,
        "--num-layers-per-virtual-pipeline-stage": parallel.num_layers_per_virtual_pipeline_stage,
        "--num-virtual-stages-per-pipeline-rank": parallel.num_virtual_stages_per_pipeline_rank,
    }
    ends = {
        "--decoder-first-pipeline-num-layers": parallel.decoder_first_pipeline_num_layers,
        "--decoder-last-pipeline-num-layers": parallel.decoder_last_pipeline_num_layers,
    }
    given = [name for name, value in ways.items() if value is not None]
    given_ends = [name for name, value in ends.items() if value is not None]
    by_count = given == ["--num-virtual-stages-per-pipeline-rank"]
    require(
        len(given) <= 1 and (not given or not given_ends or by_count),
        " and ".join([*given, *given_ends]) + " together",
        "one way to place layers (--num-virtual-stages-per-pipeline-rank may go with first and last layers)",
        f"keep one of them, or write a {LAYOUT}",
    )


def layout_places_every_layer(config: PretrainConfig) -> None:
    """A layout has one embedding first, one loss last, and every transformer layer once."""
    text = config.parallel.pipeline_model_parallel_layout
    if text is None:
        return
    flat = "".join(parse_layout(text))
    layers, expected = flat.count("t"), config.model.num_layers
    change = "loses" if layers < expected else "adds"
    require(
        layers == expected,
        f"{layers} transformer layers in {LAYOUT} {text!r}",
        f"--num-layers {expected}",
        f"the layout {change} {abs(layers - expected)}: correct it or --num-layers",
    )
    for letter, meaning, place in (("E", "embedding", 0), ("L", "loss", -1)):
        require(
            flat.count(letter) == 1 and flat[place] == letter,
            f"{flat.count(letter)} {letter} in {LAYOUT} {text!r}",
            f"one {letter} ({meaning}), {'first' if place == 0 else 'last'} of all",
            "correct the layout",
        )


def layout_fits_the_pipeline(config: PretrainConfig) -> None:
    """The stages of a layout go evenly over the pipeline ranks."""
    text = config.parallel.pipeline_model_parallel_layout
    if text is None:
        return
    stages, ranks = len(parse_layout(text)), config.parallel.pipeline_model_parallel_size
    require(
        stages % ranks == 0,
        f"{stages} stages in {LAYOUT} {text!r}",
        f"a multiple of --pipeline-model-parallel-size {ranks}",
        f"write {neighbours(stages, ranks)} stages, or choose another pipeline size",
    )


def layers_split_evenly(config: PretrainConfig) -> None:
    """Without a layout, the layers that no end takes go evenly over the remaining ranks."""
    parallel, layers = config.parallel, config.model.num_layers
    if parallel.pipeline_model_parallel_layout is not None:
        return
    ends = (parallel.decoder_first_pipeline_num_layers, parallel.decoder_last_pipeline_num_layers)
    ranks = parallel.pipeline_model_parallel_size - sum(end is not None for end in ends)
    middle = layers - sum(end or 0 for end in ends)
    of_ends = " less those of the first and last stage" if any(ends) else ""
    even = middle == 0 if ranks <= 0 else middle > 0 and middle % ranks == 0
    require(
        ranks >= 0 and even,
        f"--num-layers {layers}{of_ends}: {middle} layers for {max(0, ranks)} pipeline stages",
        f"a positive multiple of {ranks}" if ranks > 0 else "no layer left over",
        f"choose another number of layers or stages, or write a {LAYOUT}",
    )


def layers_split_into_virtual_stages(config: PretrainConfig) -> None:
    """Every pipeline rank's layers go evenly into its model chunks."""
    parallel = config.parallel
    if parallel.pipeline_model_parallel_layout is not None:
        return
    per_chunk, chunks = parallel.num_layers_per_virtual_pipeline_stage, parallel.num_virtual_stages_per_pipeline_rank
    divisor = per_chunk or chunks or 1
    flag = "--num-layers-per-virtual-pipeline-stage" if per_chunk else "--num-virtual-stages-per-pipeline-rank"
    for layers in layers_per_rank(config):
        require(
            layers % divisor == 0,
            f"{flag} {divisor}",
            f"a divisor of the {layers} layers of a pipeline rank",
            f"choose a divisor of {layers}, or write a {LAYOUT}",
        )


def interleaving_needs_a_pipeline(config: PretrainConfig) -> None:
    """Virtual stages on one rank would only run one after the other."""
    chunks = config.virtual_pipeline_size
    require(
        chunks is None or config.parallel.pipeline_model_parallel_size > 1,
        f"{chunks} virtual stages per rank with --pipeline-model-parallel-size 1",
        "a pipeline of at least 2 ranks",
        "remove the virtual stages or choose a pipeline size",
    )


def interleaving_needs_whole_groups(config: PretrainConfig) -> None:
    """The interleaved schedule runs microbatches in groups of the pipeline's size."""
    ranks, count = config.parallel.pipeline_model_parallel_size, config.num_microbatches
    unit = config.training.micro_batch_size * config.data_parallel_size * ranks
    require(
        config.virtual_pipeline_size is None or (count >= ranks and count % ranks == 0),
        f"{count} microbatches per step with virtual pipeline stages",
        f"a multiple of --pipeline-model-parallel-size {ranks}",
        f"choose a --global-batch-size of {neighbours(config.global_batch_size, unit)}",
    )


CHECKS: tuple[Check, ...] = (
    one_way_to_place_layers,
    layout_places_every_layer,
    layout_fits_the_pipeline,
    layers_split_evenly,
    layers_split_into_virtual_stages,
    interleaving_needs_a_pipeline,
    interleaving_needs_whole_groups,
)
