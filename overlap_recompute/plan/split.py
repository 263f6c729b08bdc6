"""How layers are spread over pipeline stages and model chunks.

A split is counts: `split[stage][chunk]` layers. Chunk c of stage s is virtual stage `c * stages + s` (Megatron's
numbering); layers are numbered through the virtual stages. The embedding is on the first virtual stage, final norm,
output layer and loss on the last one, whether or not they hold layers.
"""

from overlap_recompute.plan.errors import ConfigError

Split = tuple[tuple[int, ...], ...]
"""Layers by stage and chunk."""


def even_split(layers: int, stages: int, chunks: int = 1) -> Split:
    """As many layers on each virtual stage.

    Raises:
        ConfigError: the layers cannot be shared out evenly.
    """
    each, rest = divmod(layers, stages * chunks)
    if rest or each == 0:
        raise ConfigError(
            f"{layers} layers over {stages} stages of {chunks} chunk(s)",
            f"a multiple of {stages * chunks} layers",
            "choose another number of stages, or give the layout by hand (--pipeline-model-parallel-layout)",
        )
    return ((each,) * chunks,) * stages


def layer_count(split: Split) -> int:
    """Layers of the whole model."""
    return sum(map(sum, split))


def layers_of(split: Split) -> tuple[tuple[range, ...], ...]:
    """Global indices (from 0) of the layers of each stage and chunk."""
    stages, chunks = len(split), len(split[0])
    ranges: list[list[range]] = [[] for _ in range(stages)]
    first = 0
    for chunk in range(chunks):
        for stage in range(stages):
            ranges[stage].append(range(first, first + split[stage][chunk]))
            first += split[stage][chunk]
    return tuple(tuple(row) for row in ranges)


def layout_text(split: Split) -> str:
    """The split as `--pipeline-model-parallel-layout` takes it: virtual stages joined by `|`, e.g. `Et*3|t*5L`."""
    stages, chunks = len(split), len(split[0])
    words = []
    for virtual in range(stages * chunks):
        count = split[virtual % stages][virtual // stages]
        first, last = "E" * (virtual == 0), "L" * (virtual == stages * chunks - 1)
        words.append(first + ("" if count == 0 else "t" if count == 1 else f"t*{count}") + last)
    return "|".join(words)
