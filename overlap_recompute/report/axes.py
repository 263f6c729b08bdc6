"""Round ticks of an axis."""

import math

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def round_ticks(low: float, high: float, most: int = 10) -> list[float]:
    """Ticks from `low` to `high` at a round distance, `most` at most."""
    if high <= low:
        return [low]
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in _STEPS if unit * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def shown(value: float) -> str:
    """A tick's or a bar's figure: no exponents, no needless digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
