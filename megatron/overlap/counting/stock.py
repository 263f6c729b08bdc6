"""Layers under stock full recomputation, from the same layers without it.

A group of layers that one checkpoint covers keeps its first layer's input. In its backward pass the whole group runs
again, and all that it would have kept is there at once: it counts as the working set of the group's last layer, where
backward begins.
"""

from collections.abc import Iterator
from dataclasses import replace

from megatron.pretrain.config import PretrainConfig
from overlap_recompute.plan.counted import CountedKind, CountedModel
from overlap_recompute.plan.split import layers_of
from overlap_recompute.plan.storages import StorageRow, kept_bytes_of

FULL, BLOCK = "full", "block"
REASON = "--recompute-granularity full runs the whole layer again"


def under_full_recompute(counted: CountedModel, config: PretrainConfig) -> CountedModel:
    """The same model under the `--recompute-*` flags of the run; unchanged where they do not ask for whole layers."""
    options = config.recompute
    if options.recompute_granularity != FULL:
        return counted
    count = options.recompute_num_layers or 1
    kinds = list(counted.kinds)
    numbers = list(counted.layers)
    for chunk in (chunk for stage in layers_of(counted.layout.split) for chunk in stage):
        for group in _groups(chunk, count, options.recompute_method == BLOCK):
            for layer, kind in zip(group, _of_group(counted, group), strict=True):
                if kind not in kinds:
                    kinds.append(kind)
                numbers[layer] = kinds.index(kind)
    used = sorted(set(numbers))
    return replace(
        counted, kinds=tuple(kinds[number] for number in used), layers=tuple(used.index(number) for number in numbers)
    )


def _groups(chunk: range, count: int, block: bool) -> Iterator[range]:
    """Layers under one checkpoint: of a chunk the first ones each by itself (block), or all in groups (uniform)."""
    if block:
        yield from (range(layer, layer + 1) for layer in chunk[:count])
    else:
        yield from (chunk[first : first + count] for first in range(0, len(chunk), count))


def _of_group(counted: CountedModel, group: range) -> Iterator[CountedKind]:
    kinds = [counted.kind_of(layer) for layer in group]
    nothing: frozenset[str] = frozenset()
    held_bytes = sum(kept_bytes_of(kind.storages, nothing) for kind in kinds) - counted.boundary_bytes
    transient_bytes = held_bytes + max(kind.transient_bytes for kind in kinds)
    source = StorageRow(name="input of the layer", nbytes=counted.boundary_bytes, maker=None, held=True)
    for place, kind in enumerate(kinds):
        yield replace(
            kind,
            fingerprint=f"{kind.fingerprint}/recomputed-{place}-of-{len(kinds)}",
            units=tuple(replace(unit, refusal=REASON) for unit in kind.units),
            storages=(source,) if place == 0 else (),
            backward_needs=(),
            transient_bytes=transient_bytes if place == len(kinds) - 1 else 0,
            backward_memory=None,
        )
