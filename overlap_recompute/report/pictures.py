"""The drawings of the page: lanes of each stage over time, memory over time, bars."""

from collections.abc import Sequence

from overlap_recompute.report.markup import element, label, picture, rectangle
from overlap_recompute.report.style import STAGE_COLOURS
from overlap_recompute.simulator.timeline import MemoryPoint, SimulationResult, Span

WIDTH = 1100.0
_LEFT, _RIGHT, _TOP = 64.0, 8.0, 22.0
_LANES = {"compute": (0.0, 20.0), "recompute": (0.0, 20.0), "wait": (0.0, 20.0), "tp": (22.0, 5.0), "pp": (28.0, 5.0)}
_ROW = 42.0
_MOST_SPANS = 6000
_MOST_POINTS = 1200
_GIB = 1 << 30


def lanes(result: SimulationResult, end_us: float) -> str:
    """Passes, recompute, waits and links of each stage up to `end_us`."""
    spans = [span for span in result.spans if span.begin_us < end_us]
    stages = len(result.stages)
    scale = (WIDTH - _LEFT - _RIGHT) / end_us
    parts = _time_axis(end_us, scale, _TOP + stages * _ROW)
    for stage in range(stages):
        parts.append(label(4.0, _TOP + stage * _ROW + 14.0, f"stage {stage}"))
    # Waits lie behind everything, recompute on top of the pass that waits for it.
    order = {"wait": 0, "compute": 1, "recompute": 2, "tp": 3, "pp": 3}
    for span in sorted(spans, key=lambda span: order[span.lane])[:_MOST_SPANS]:
        offset, height = _LANES[span.lane]
        begin, end = span.begin_us, min(span.end_us, end_us)
        tooltip = f"{span.name}: {begin / 1000:.2f} to {span.end_us / 1000:.2f} ms"
        y = _TOP + span.stage * _ROW + offset
        parts.append(rectangle(_LEFT + begin * scale, y, (end - begin) * scale, height, _css(span), tooltip))
    return picture(WIDTH, _TOP + stages * _ROW + 4.0, "What each stage does over time", parts, minimum_px=760)


def shown_until_us(result: SimulationResult) -> float:
    """How much of an iteration can be drawn: all of it, or what holds as many spans as a page can carry."""
    if len(result.spans) <= _MOST_SPANS:
        return max((span.end_us for span in result.spans), default=1.0)
    return sorted(span.begin_us for span in result.spans)[_MOST_SPANS]


def memory(result: SimulationResult, budget_bytes: int) -> str:
    """Memory of each stage over the iteration, and the budget."""
    bottom = 200.0
    height = 240.0 + (len(result.stages) - 1) // 12 * 16.0
    end_us = max((points.memory[-1].time_us for points in result.stages if points.memory), default=1.0) or 1.0
    most = max(budget_bytes, result.peak_bytes) * 1.05 or 1.0
    scale, rise = (WIDTH - _LEFT - _RIGHT) / end_us, (bottom - _TOP) / most
    parts = _time_axis(end_us, scale, bottom)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            label(_LEFT - 6.0, bottom - share * most * rise + 4.0, f"{share * most / _GIB:.2f}", "soft", "end")
        )
    if budget_bytes:
        y = bottom - budget_bytes * rise
        parts.append(element("line", x1=_LEFT, y1=y, x2=WIDTH - _RIGHT, y2=y, class_="budget"))
        parts.append(label(WIDTH - _RIGHT, y - 4.0, f"budget {budget_bytes / _GIB:.2f} GiB", "label", "end"))
    for stage in result.stages:
        path = _steps(thinned(stage.memory, _MOST_POINTS), scale, rise, bottom)
        colour = STAGE_COLOURS[stage.stage % len(STAGE_COLOURS)]
        parts.append(element("path", d=path, class_="curve", stroke=colour))
        x = _LEFT + stage.stage % 12 * 84.0
        y = bottom + 24.0 + stage.stage // 12 * 16.0
        parts.append(element("rect", x=x, y=y, width=10, height=10, fill=colour))
        parts.append(label(x + 14.0, y + 9.0, f"stage {stage.stage}", "soft"))
    return picture(WIDTH, height, "Memory of each stage over the iteration, GiB", parts, minimum_px=640)


def bars(names: Sequence[str], values: Sequence[float], unit: str, description: str) -> str:
    """Horizontal bars with their figures; the longest takes the width."""
    most = max(values, default=1.0) or 1.0
    parts = []
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 6.0 + row * 26.0
        width = value / most * 520.0
        parts += [
            label(150.0, y + 14.0, name, "label", "end"),
            rectangle(158.0, y, width, 18.0, "bar", f"{name}: {value:.3g} {unit}"),
            label(164.0 + width, y + 14.0, f"{value:,.4g} {unit}", "soft"),
        ]
    return picture(800.0, 10.0 + len(names) * 26.0, description, parts, minimum_px=520)


def thinned(points: Sequence[MemoryPoint], most: int) -> list[MemoryPoint]:
    """At most about `most` points, the highest of each stretch, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    stride = -(-len(points) // most)
    return [max(points[i : i + stride], key=lambda point: point.nbytes) for i in range(0, len(points), stride)]


def _steps(points: Sequence[MemoryPoint], scale: float, rise: float, bottom: float) -> str:
    words = []
    for number, point in enumerate(points):
        x, y = _LEFT + point.time_us * scale, bottom - point.nbytes * rise
        words.append(f"M{x:.1f} {y:.1f}" if number == 0 else f"H{x:.1f}V{y:.1f}")
    return "".join(words)


def _time_axis(end_us: float, scale: float, bottom: float) -> list[str]:
    parts = []
    for tick in range(11):
        time_us = end_us * tick / 10
        x = _LEFT + time_us * scale
        parts.append(element("line", x1=x, y1=_TOP - 4.0, x2=x, y2=bottom, class_="grid"))
        anchor = "end" if tick == 10 else "middle"
        parts.append(label(x, _TOP - 8.0, f"{time_us / 1000:.4g}{' ms' if tick == 10 else ''}", "soft", anchor))
    return parts


def _css(span: Span) -> str:
    if span.lane == "recompute":
        return "hidden" if span.hidden else "exposed"
    if span.lane == "compute":
        return "forward" if "F" in span.name.partition("(")[0] else "backward"
    return span.lane
