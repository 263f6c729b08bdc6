"""What a plan file tells a rank to do."""

import hashlib
import math
from typing import Any

from overlap_recompute.plan.codec import to_text
from overlap_recompute.plan.plan_file import Plan, StagePlan
from overlap_recompute.plan.windows import WindowKind

US_PER_MS = 1e3


def settings_of_plan(plan: Plan, stage: int, flags: str, *, fills: bool) -> dict[str, Any]:
    """Fields of `OverlapSettings` that a plan decides.

    Args:
        plan: checked against this run.
        stage: of this rank.
        flags: those of the run as one text.
        fills: False: recompute on demand all the same.
    """
    mine = plan.stages[stage]
    return {
        "planned": {entry.layer: entry.dropped for entry in mine.layers},
        "fills": frozenset(map(WindowKind, mine.window_kinds)) if fills else frozenset(),
        "prefetch_cap_bytes": mine.prefetch_cap_bytes,
        "units_per_window": units_per_window(mine),
        "predicted": predicted_figures(plan),
        # Ranks may have read different files under one name.
        "flags": f"{flags}, plan {hashlib.sha256(to_text(plan).encode()).hexdigest()[:16]}",
    }


def units_per_window(stage: StagePlan) -> int | None:
    """Of the windows that the plan fills, rounded up; None where it fills none.

    Units go into windows in the order of need, by the planner as by the runtime, so their number says which they are;
    that windows of a layer get different numbers is lost.
    """
    windows = {fill.window for fill in stage.fills}
    return math.ceil(len(stage.fills) / len(windows)) if windows else None


def predicted_figures(plan: Plan) -> dict[str, float]:
    """For the log, beside what is measured: of an iteration, and of exposed recompute the mean over stages."""
    exposed_us = sum(stage.predicted.exposed_us for stage in plan.stages) / len(plan.stages) * plan.layout.microbatches
    return {
        "predicted_iteration_ms": plan.predicted_iteration_us / US_PER_MS,
        "predicted_exposed_ms": exposed_us / US_PER_MS,
    }
