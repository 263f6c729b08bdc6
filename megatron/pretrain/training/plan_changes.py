"""What one plan does otherwise than another, on one line of the log (`overlap-recompute diff` says it at length)."""

from megatron.pretrain.training.planned import units_per_window
from overlap_recompute.plan.plan_file import Plan, StagePlan
from overlap_recompute.plan.ranges import ranges_text

BYTES_PER_MIB = 1 << 20
MOST_PARTS = 8


def changes_in_words(old: Plan, new: Plan) -> str:
    """`layers 0-1: +linear_fc1 -activation; stage 1: prefetch cap 1.00 -> 2.00 MiB`; empty where they decide alike.

    `+` is recomputed by the new plan only, `-` by the old one only. Both plans are of one layout.
    """
    before, after = _dropped(old), _dropped(new)
    alike: dict[str, list[int]] = {}
    for layer, units in before.items():
        signs = [f"+{unit}" for unit in after[layer] if unit not in units]
        signs += [f"-{unit}" for unit in units if unit not in after[layer]]
        if signs:
            alike.setdefault(" ".join(signs), []).append(layer)
    parts = [
        f"{'layer' if len(layers) == 1 else 'layers'} {ranges_text(layers)}: {what}" for what, layers in alike.items()
    ]
    for mine, its in zip(old.stages, new.stages, strict=True):
        settings = _settings(mine, its)
        if settings:
            parts.append(f"stage {mine.stage}: {', '.join(settings)}")
    left_out = len(parts) - MOST_PARTS
    return "; ".join([*parts[:MOST_PARTS], *([f"{left_out} changes more"] if left_out > 0 else [])])


def _settings(old: StagePlan, new: StagePlan) -> list[str]:
    found = []
    if old.window_kinds != new.window_kinds:
        found.append(f"windows {'+'.join(old.window_kinds) or 'none'} -> {'+'.join(new.window_kinds) or 'none'}")
    if old.prefetch_cap_bytes != new.prefetch_cap_bytes:
        mib = [stage.prefetch_cap_bytes / BYTES_PER_MIB for stage in (old, new)]
        found.append(f"prefetch cap {mib[0]:.2f} -> {mib[1]:.2f} MiB")
    if units_per_window(old) != units_per_window(new):
        found.append(f"units of a window {units_per_window(old) or 0} -> {units_per_window(new) or 0}")
    return found


def _dropped(plan: Plan) -> dict[int, tuple[str, ...]]:
    return {entry.layer: entry.dropped for stage in plan.stages for entry in stage.layers}
