"""Whether the windows of a run are still those of its profile."""

from collections.abc import Mapping

from overlap_recompute.plan.profile import COMPUTE, Profile

TOLERANCE = 0.2
"""Of a window's length."""
US_PER_MS = 1e3


class Drift:
    """Compares mean lengths of windows by kind, and says once for each kind where they are off.

    Waits for other stages are not compared: they follow from the plan.

    Args:
        profile: what was measured at the start.
    """

    def __init__(self, profile: Profile) -> None:
        self.planned_us = mean_windows_us(profile)
        self._said: set[str] = set()

    def look(self, figures: Mapping[str, float]) -> list[str]:
        """What to tell the reader of the log.

        Args:
            figures: those of overlapped recompute since the last line.
        """
        messages = []
        for kind, planned_us in self.planned_us.items():
            windows = figures.get(f"overlap/windows/{kind}", 0.0)
            if not windows or kind in self._said:
                continue
            now_us = figures[f"overlap/window_ms/{kind}"] / windows * US_PER_MS
            if _is_off(planned_us, now_us):
                self._said.add(kind)
                messages.append(
                    f"windows of kind {kind} take {now_us:.0f} us, {planned_us:.0f} us when they were measured: a plan "
                    f"made from that profile may not fit this run any more"
                )
        return messages


def mean_windows_us(profile: Profile) -> dict[str, float]:
    """Mean length of the windows of each kind, over all layers and both ends of the model."""
    lengths: dict[str, list[float]] = {}
    passes = [profile.embedding.forward, profile.embedding.backward, profile.head.forward, profile.head.backward]
    for layer in range(len(profile.layers)):
        passes += [profile.kind_of(layer).forward, profile.kind_of(layer).backward]
    for step in (step for steps in passes for step in steps if step.kind != COMPUTE):
        lengths.setdefault(step.kind, []).append(step.duration_us)
    return {kind: sum(found) / len(found) for kind, found in lengths.items()}


def drifts(then: Profile, now: Profile) -> list[str]:
    """Kinds of windows whose mean length is another one than it was, in words."""
    before_us, after_us = mean_windows_us(then), mean_windows_us(now)
    return [
        f"{kind} {length_us:.0f} -> {after_us.get(kind, 0.0):.0f} us"
        for kind, length_us in before_us.items()
        if _is_off(length_us, after_us.get(kind, 0.0))
    ]


def _is_off(planned_us: float, now_us: float) -> bool:
    return abs(now_us - planned_us) > TOLERANCE * planned_us
