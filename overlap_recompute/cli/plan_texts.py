"""Plans in words: layers with the same decision together, sizes and times with their units."""

import itertools
from collections.abc import Iterable

from overlap_recompute.plan.plan_file import LayerPlan, StagePlan
from overlap_recompute.plan.ranges import ranges_text

_BYTES_PER_MIB = 1 << 20
_BYTES_PER_GIB = 1 << 30


def in_mib(nbytes: float) -> str:
    """Bytes as MiB or GiB."""
    if nbytes >= 10 * _BYTES_PER_GIB:
        return f"{nbytes / _BYTES_PER_GIB:.1f} GiB"
    return f"{nbytes / _BYTES_PER_MIB:.1f} MiB"


def in_ms(duration_us: float) -> str:
    """Microseconds as milliseconds."""
    return f"{duration_us / 1000:.2f} ms"


def layer_lines(layers: Iterable[LayerPlan]) -> list[str]:
    """One line for each run of neighbouring layers that drop the same units."""
    lines = []
    for dropped, group in itertools.groupby(layers, key=lambda entry: entry.dropped):
        numbers = [entry.layer for entry in group]
        span = f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {ranges_text(numbers)}"
        lines.append(f"{span}: {'recompute ' + ', '.join(dropped) if dropped else 'keep everything'}")
    return lines or ["no layers"]


def totals(stage: StagePlan) -> dict[str, int]:
    """How many layers drop each unit."""
    counts: dict[str, int] = {}
    for entry in stage.layers:
        for unit in entry.dropped:
            counts[unit] = counts.get(unit, 0) + 1
    return counts
