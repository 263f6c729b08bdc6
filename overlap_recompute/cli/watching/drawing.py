"""Small drawings and numbers for a terminal."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_KIB = 1024.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Charset:
    """What a terminal can show."""

    levels: str
    """Heights of a sparkline, lowest first."""
    full: str
    """The filled part of a bar."""
    empty: str
    """The rest of a bar."""
    unknown: str
    """A value that is not finite, in a sparkline."""


UNICODE = Charset(levels="▁▂▃▄▅▆▇█", full="█", empty="░", unknown="×")
ASCII = Charset(levels="_.-~=+*#", full="#", empty=".", unknown="x")


def charset_of(encoding: str | None) -> Charset:
    """The characters that an output of this encoding can take."""
    try:
        UNICODE.levels.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def sparkline(values: Sequence[float], width: int, charset: Charset) -> str:
    """The course of the values in at most `width` characters; each stands for the mean of a stretch."""
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    edges = [len(values) * place // count for place in range(count + 1)]
    stretches = [values[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]
    means = [sum(stretch) / len(stretch) for stretch in stretches]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    top = len(charset.levels) - 1

    def level(mean: float) -> str:
        if not math.isfinite(mean):
            return charset.unknown
        return charset.levels[round(top * (mean - low) / (high - low)) if high > low else 0]

    return "".join(map(level, means))


def bar(fraction: float, width: int, charset: Charset) -> str:
    """A bar that is filled from the left."""
    full = round(min(1.0, max(0.0, fraction)) * width) if math.isfinite(fraction) else 0
    return charset.full * full + charset.empty * (width - full)


def bytes_text(count: float) -> str:
    """12 B, 3.4 KiB, 1.25 GiB."""
    if not math.isfinite(count):
        return str(count)
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1)):
        if abs(count) < _KIB:
            return f"{count:.{digits}f} {unit}"
        count /= _KIB
    return f"{count:.2f} GiB"


def duration_text(seconds: float) -> str:
    """7 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    if not math.isfinite(seconds):
        return "?"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def amount_text(value: float | None, unit: str, digits: int = 1) -> str:
    """The value with its unit; a dash for one that was not measured."""
    return "-" if value is None else f"{value:,.{digits}f} {unit}".replace(",", " ")


def printable(text: str) -> str:
    """The text without characters that would move the cursor or change colours."""
    return "".join(char if char.isprintable() else "?" for char in text)


def clip(text: str, width: int) -> str:
    """The text in at most `width` columns; wide characters take two."""
    used = 0
    kept: list[str] = []
    for char in text:
        used += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used > width:
            return "".join(kept)
        kept.append(char)
    return text
