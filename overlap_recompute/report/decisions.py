"""Rows of the page's tables about a plan."""

import itertools

from overlap_recompute.plan.plan_file import MEMORY_TERMS, LayerPlan, Plan

_GIB = 1 << 30
_MIB = 1 << 20
_TERMS = (*MEMORY_TERMS, ("sum", "total_bytes"))


def memory_rows(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the memory table of each stage, terms that are 0 everywhere left out."""
    tables = [stage.predicted.memory for stage in plan.stages]
    terms = [(name, field) for name, field in _TERMS if any(getattr(found, field) for found in tables)]
    rows = [
        [f"stage {number}", *[f"{getattr(found, field) / _GIB:,.2f}" for _, field in terms]]
        for number, found in enumerate(tables)
    ]
    return ["stage", *[name for name, _ in terms]], rows


def decision_rows(plan: Plan) -> list[list[str]]:
    """What the layers of each stage drop; neighbours that drop the same are one row."""
    rows = []
    for stage in plan.stages:
        for (chunk, dropped), group in itertools.groupby(stage.layers, key=lambda entry: (entry.chunk, entry.dropped)):
            cap = f"{stage.prefetch_cap_bytes / _MIB:,.1f} MiB" if stage.window_kinds else "on demand"
            rows.append([_name(stage.stage, chunk, list(group)), ", ".join(dropped) or "nothing", cap])
    return rows


def _name(stage: int, chunk: int, group: list[LayerPlan]) -> str:
    first, last = group[0].layer, group[-1].layer
    layers = f"layer {first}" if first == last else f"layers {first} to {last}"
    return f"stage {stage}{f', chunk {chunk}' if chunk else ''}: {layers}"
