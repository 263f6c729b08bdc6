"""What a search tells about itself while it runs."""

from collections.abc import Callable
from dataclasses import dataclass

_EPSILON_US = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a search knows so far about a stage."""

    stage: int
    exposed_us: float
    """Of the best solution; infinite if there is none."""
    bound_us: float
    """No solution exposes less."""
    elapsed_s: float

    @property
    def gap(self) -> float:
        """Share of the exposed time that a better solution might save."""
        return gap_of(self.exposed_us, self.bound_us)

    def __str__(self) -> str:
        return (
            f"stage {self.stage}: {self.exposed_us:.0f} us exposed, at least {self.bound_us:.0f} us, "
            f"gap {100 * self.gap:.1f} %, {self.elapsed_s:.1f} s"
        )


Report = Callable[[Progress], None]


def gap_of(exposed_us: float, bound_us: float) -> float:
    """Relative distance between a solution and a bound."""
    if exposed_us - bound_us <= _EPSILON_US:
        return 0.0
    return 1.0 if exposed_us == float("inf") else (exposed_us - bound_us) / exposed_us
