"""Names of the figures that overlapped recompute adds to a sample (docs/overlap.md), and how to pick them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from overlap_recompute.cli.watching.lines import Sample

HIDDEN = "overlap/hidden_recompute_ms"
EXPOSED = "overlap/exposed_recompute_ms"
BUBBLE = "overlap/bubble_fraction"
PREDICTED_ITERATION = "overlap/predicted_iteration_ms"
PREDICTED_EXPOSED = "overlap/predicted_exposed_ms"
WINDOWS = "overlap/windows/"
WINDOW_MS = "overlap/window_ms/"
FILLED_MS = "overlap/filled_ms/"
OVERRUN_MS = "overlap/overrun_ms/"

_OF_A_STAGE = re.compile(r"overlap/(?P<name>[a-z_]+_bytes)/(?:stage[_-]?)?(?P<stage>\d{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Windows of one kind in one step."""

    kind: str
    """A value of `overlap_recompute.plan.windows.WindowKind`."""
    count: float | None
    """How many."""
    length_ms: float
    """How long the rank had nothing to do but wait."""
    filled_ms: float
    """The part spent on recompute."""
    overrun_ms: float | None
    """Recompute after the communication was over, at most."""

    @property
    def filled_fraction(self) -> float:
        """0 for an empty window, 1 for a full one."""
        return min(1.0, max(0.0, self.filled_ms / self.length_ms)) if self.length_ms > 0 else 0.0


def windows_of(sample: Sample) -> tuple[Windows, ...]:
    """Return the windows of a sample, in its order."""
    extra = sample.extra
    return tuple(
        Windows(
            kind=kind,
            count=extra.get(WINDOWS + kind),
            length_ms=length_ms,
            filled_ms=extra.get(FILLED_MS + kind, 0.0),
            overrun_ms=extra.get(OVERRUN_MS + kind),
        )
        for name, length_ms in extra.items()
        if name.startswith(WINDOW_MS) and (kind := name.removeprefix(WINDOW_MS))
    )


def stage_bytes(sample: Sample) -> Mapping[int, Mapping[str, float]]:
    """Return the figures `overlap/NAME_bytes/STAGE` by stage, then by name."""
    found: dict[int, dict[str, float]] = {}
    for name, value in sample.extra.items():
        if match := _OF_A_STAGE.fullmatch(name):
            found.setdefault(int(match["stage"]), {})[match["name"]] = value
    return dict(sorted(found.items()))
