"""The drawings of the page: passes of each stage over time, a stretch of it in detail, memory over time, bars."""

from collections.abc import Sequence

from overlap_recompute.report.axes import round_ticks, shown
from overlap_recompute.report.markup import element, label, picture, rectangle, text
from overlap_recompute.report.passes import Block
from overlap_recompute.report.style import STAGE_COLOURS
from overlap_recompute.simulator.timeline import MemoryPoint, SimulationResult, Span

WIDTH = 1100.0
MINIMUM_PX = 1000
"""Below it a picture scrolls: its text would be too small to read."""
_LEFT, _RIGHT, _TOP = 64.0, 12.0, 22.0
_LANES = {"compute": (0.0, 20.0), "recompute": (0.0, 20.0), "wait": (0.0, 20.0), "tp": (22.0, 5.0), "pp": (28.0, 5.0)}
_ROW, _BLOCK, _STRIP = 42.0, 26.0, 8.0
_NUMBER_PX = 9.0
"""Of a digit and its air: narrower blocks have no number."""
_MOST_SPANS, _MOST_BLOCKS = 6000, 3000
_MOST_POINTS = 1200
_GIB = 1 << 30


def stage_names(stages: int) -> tuple[str, ...]:
    """Names of the rows of simulated stages."""
    return tuple(f"stage {stage}" for stage in range(stages))


def overview(blocks: Sequence[Block], loose: Sequence[Span], names: Sequence[str], end_us: float) -> str:
    """Passes of each row (a stage, or a rank) with their microbatches up to `end_us`; at the foot of each its hidden
    and exposed recompute, together as long as they take."""
    scale = (WIDTH - _LEFT - _RIGHT) / end_us
    row = _BLOCK + 10.0
    parts = _time_axis(0.0, end_us, scale, _TOP + len(names) * row)
    for number, name in enumerate(names):
        y = _TOP + number * row
        parts += [*_row_name(name, y + 1.0), rectangle(_LEFT, y, end_us * scale, _BLOCK, "wait")]
    for block in blocks:
        if block.begin_us < end_us:
            parts += _block(block, scale, _TOP + block.stage * row)
    for span in loose:
        if span.begin_us < end_us:
            place = (_LEFT + span.begin_us * scale, _TOP + span.stage * row, (span.end_us - span.begin_us) * scale)
            parts.append(rectangle(*place, _BLOCK, _css(span), _tooltip(span)))
    height = _TOP + len(names) * row + 4.0
    return picture(WIDTH, height, "Passes over time, row by row", parts, minimum_px=MINIMUM_PX)


def _row_name(name: str, y: float) -> list[str]:
    """One line in the middle of its row's bar, or two of them."""
    first, _, second = name.partition("\n")
    if not second:
        return [label(4.0, y + 16.0, first)]
    return [label(4.0, y + 10.0, first), label(4.0, y + 24.0, second, "soft")]


def _block(block: Block, scale: float, y: float) -> list[str]:
    x, width = _LEFT + block.begin_us * scale, (block.end_us - block.begin_us) * scale
    words = f"{block.name}: {block.begin_us / 1000:.2f} to {block.end_us / 1000:.2f} ms"
    if block.hidden_us or block.exposed_us:
        words += f"; recompute {block.hidden_us / 1000:.2f} ms hidden, {block.exposed_us / 1000:.2f} ms exposed"
    css = "forward" if block.kind == "F" else "backward"
    parts = [rectangle(x, y, max(width - 0.6, 0.2), _BLOCK, css, words)]
    foot = y + _BLOCK - _STRIP
    hidden_px, exposed_px = block.hidden_us * scale, block.exposed_us * scale
    if hidden_px:
        parts.append(rectangle(x, foot, hidden_px, _STRIP, "hidden", words))
    if exposed_px:
        parts.append(rectangle(x + hidden_px, foot, exposed_px, _STRIP, "exposed", words))
    number = f"{block.microbatch}"
    if width > _NUMBER_PX * len(number):
        parts.append(label(x + width / 2, y + 13.0, number, "inside", "middle"))
    return parts


def drawn_until_us(blocks: Sequence[Block]) -> float:
    """How much of an iteration can be drawn: all of it, or what holds as many passes as a page can carry."""
    if len(blocks) <= _MOST_BLOCKS:
        return max((block.end_us for block in blocks), default=1.0)
    return sorted(block.begin_us for block in blocks)[_MOST_BLOCKS]


def lanes(spans: Sequence[Span], names: Sequence[str], begin_us: float, end_us: float) -> str:
    """Passes, recompute, waits and links of each row from `begin_us` to `end_us`, piece by piece."""
    spans = [span for span in spans if span.begin_us < end_us and span.end_us > begin_us]
    scale = (WIDTH - _LEFT - _RIGHT) / (end_us - begin_us)
    parts = _time_axis(begin_us, end_us, scale, _TOP + len(names) * _ROW)
    for number, name in enumerate(names):
        parts += _row_name(name, _TOP + number * _ROW - 2.0)
    # Waits lie behind everything, recompute on top of the pass that waits for it.
    order = {"wait": 0, "compute": 1, "recompute": 2, "tp": 3, "pp": 3}
    for span in sorted(spans, key=lambda span: order[span.lane])[:_MOST_SPANS]:
        offset, height = _LANES[span.lane]
        begin, end = max(span.begin_us, begin_us), min(span.end_us, end_us)
        y = _TOP + span.stage * _ROW + offset
        x = _LEFT + (begin - begin_us) * scale
        parts.append(rectangle(x, y, (end - begin) * scale, height, _css(span), _tooltip(span)))
    height = _TOP + len(names) * _ROW + 4.0
    return picture(WIDTH, height, "What happens in each row, in detail", parts, minimum_px=MINIMUM_PX)


def _tooltip(span: Span) -> str:
    return f"{span.name}: {span.begin_us / 1000:.2f} to {span.end_us / 1000:.2f} ms"


def memory(result: SimulationResult, budget_bytes: int) -> str:
    """Memory of each stage over the iteration, and the budget; the axis begins where the curves do."""
    bottom = 220.0
    height = 260.0 + (len(result.stages) - 1) // 12 * 16.0
    end_us = max((points.memory[-1].time_us for points in result.stages if points.memory), default=1.0) or 1.0
    sizes = [point.nbytes for stage in result.stages for point in stage.memory]
    most, least = float(max(budget_bytes, result.peak_bytes, 1)), float(min(sizes, default=0))
    low = max(0.0, least - 0.1 * (most - least))
    high = most + 0.08 * (most - low)
    scale, rise = (WIDTH - _LEFT - _RIGHT) / end_us, (bottom - _TOP) / (high - low)
    parts = _time_axis(0.0, end_us, scale, bottom)
    for tick in round_ticks(low / _GIB, high / _GIB, 6):
        y = bottom - (tick * _GIB - low) * rise
        parts.append(element("line", x1=_LEFT, y1=y, x2=WIDTH - _RIGHT, y2=y, class_="grid"))
        parts.append(label(_LEFT - 6.0, y + 4.0, shown(tick), "soft", "end"))
    if budget_bytes:
        y = bottom - (budget_bytes - low) * rise
        parts.append(element("line", x1=_LEFT, y1=y, x2=WIDTH - _RIGHT, y2=y, class_="budget"))
        parts.append(label(_LEFT + 6.0, y - 4.0, f"budget {budget_bytes / _GIB:.2f} GiB"))
    for stage in result.stages:
        path = _steps(thinned(stage.memory, _MOST_POINTS), scale, rise, bottom + low * rise)
        colour = STAGE_COLOURS[stage.stage % len(STAGE_COLOURS)]
        parts.append(element("path", d=path, class_="curve", stroke=colour))
        x = _LEFT + stage.stage % 12 * 84.0
        y = bottom + 24.0 + stage.stage // 12 * 16.0
        parts.append(element("rect", x=x, y=y, width=10, height=10, fill=colour))
        parts.append(label(x + 14.0, y + 9.0, f"stage {stage.stage}", "soft"))
    return picture(WIDTH, height, "Memory of each stage over the iteration, GiB", parts, minimum_px=MINIMUM_PX)


def bars(names: Sequence[str], values: Sequence[float], unit: str, description: str) -> str:
    """Horizontal bars with their figures; the longest takes the width."""
    most = max(values, default=1.0) or 1.0
    rows = []
    for name, value in zip(names, values, strict=True):
        bar = element("i", class_="bar", style=f"width:{value / most * 100:.2f}%")
        rows += [
            element("span", text(name), class_="name"),
            element("span", bar, class_="track"),
            element("span", text(f"{shown(value)} {unit}"), class_="figure"),
        ]
    return element("div", *rows, class_="bars", role="group", aria_label=description)


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


def _time_axis(begin_us: float, end_us: float, scale: float, bottom: float) -> list[str]:
    ticks = round_ticks(begin_us / 1000, end_us / 1000)
    parts = []
    for number, tick in enumerate(ticks):
        x = _LEFT + (tick * 1000 - begin_us) * scale
        parts.append(element("line", x1=x, y1=_TOP - 4.0, x2=x, y2=bottom, class_="grid"))
        unit = " ms" if number == len(ticks) - 1 else ""
        anchor = "end" if x > WIDTH - _RIGHT - 20.0 else "middle"
        parts.append(label(x, _TOP - 8.0, f"{shown(tick)}{unit}", "soft", anchor))
    return parts


def _css(span: Span) -> str:
    if span.lane == "recompute":
        return "hidden" if span.hidden else "exposed"
    if span.lane == "compute":
        return "forward" if "F" in span.name.partition("(")[0] else "backward"
    return span.lane
