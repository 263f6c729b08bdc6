"""Number types that carry their legal range, for annotations of option fields."""

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Legal values of a number: finite, and within the bounds."""

    low: float = -math.inf
    """Smallest value."""

    high: float = math.inf
    """Largest value."""

    low_is_open: bool = False
    """The smallest value itself is not legal."""

    high_is_open: bool = False
    """The largest value itself is not legal."""

    def contains(self, value: float) -> bool:
        """Whether `value` is finite and inside."""
        above = value > self.low if self.low_is_open else value >= self.low
        below = value < self.high if self.high_is_open else value <= self.high
        return math.isfinite(value) and above and below

    def describe(self) -> str:
        """The range in words, such as "at least 1"."""
        bounds = [
            (self.low, "more than" if self.low_is_open else "at least"),
            (self.high, "less than" if self.high_is_open else "at most"),
        ]
        return " and ".join(f"{words} {bound:.10g}" for bound, words in bounds if math.isfinite(bound)) or "finite"


AnyInt = Annotated[int, Range()]
PositiveInt = Annotated[int, Range(low=1)]
NonNegativeInt = Annotated[int, Range(low=0)]
Seed = Annotated[int, Range(low=0, high=2**32 - 1)]
"""numpy's generators, which shuffle the data, take no larger one."""
PositiveFloat = Annotated[float, Range(low=0, low_is_open=True)]
NonNegativeFloat = Annotated[float, Range(low=0)]
Probability = Annotated[float, Range(low=0, high=1, high_is_open=True)]
"""A dropout rate or a decay factor: 1 itself would divide by zero."""
Fraction = Annotated[float, Range(low=0, high=1)]
PositiveFraction = Annotated[float, Range(low=0, high=1, low_is_open=True)]
