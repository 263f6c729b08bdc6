"""One picture of a run: lines of text with a style each, never wider than asked for."""

import enum
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overlap_recompute.cli.watching.alarms import Alarm, extra, iteration_ms, recent
from overlap_recompute.cli.watching.drawing import (
    Charset,
    amount_text,
    bar,
    bytes_text,
    clip,
    duration_text,
    printable,
    sparkline,
)
from overlap_recompute.cli.watching.figures import (
    BUBBLE,
    EXPOSED,
    HIDDEN,
    PREDICTED_EXPOSED,
    PREDICTED_ITERATION,
    stage_bytes,
    windows_of,
)
from overlap_recompute.cli.watching.history import ENDED, Glance, Standing
from overlap_recompute.cli.watching.lines import Sample, Start

LEAST_WIDTH = 40
_LABEL = 12
_GAP = "   "
"""Between the parts of a line."""


class Style(enum.Enum):
    """How a line looks where colours are wanted."""

    PLAIN = ""
    TITLE = "1"
    FAINT = "2"
    GOOD = "32"
    BAD = "1;31"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLine:
    """A line of the picture."""

    text: str
    """Without escape sequences."""
    style: Style = Style.PLAIN
    """How it looks."""


def draw(
    name: str, glance: Glance, alarms: Sequence[Alarm], *, window: int, width: int, charset: Charset
) -> tuple[FrameLine, ...]:
    """Draw the run.

    Args:
        name: of the run, for the title.
        glance: the run as it stands.
        alarms: what is wrong with it.
        window: samples behind a "measured" figure; their median is shown beside a prediction.
        width: columns.
        charset: characters for bars and sparklines.
    """
    width = max(LEAST_WIDTH, width)
    lines = list(_head(name, glance, width))
    sample = glance.latest
    if sample is not None:
        lines.append(FrameLine(text=""))
        texts = [*_progress(glance, sample, width, charset), *_loss(glance, sample, width, charset)]
        texts += [*_speed(glance, sample, window), *_recompute(glance, sample, window, width, charset)]
        texts += [*_window_table(sample, width, charset), *_memory(sample), *_news(glance)]
        lines += [FrameLine(text=text) for text in texts]
    lines += [FrameLine(text=""), *_verdict(glance, alarms)]
    return tuple(part for line in lines for part in _fitted(line, width))


def _fitted(line: FrameLine, width: int) -> Iterator[FrameLine]:
    """The line, or as many lines as it takes, broken between its parts or else its words; a word too wide is cut."""
    text = printable(line.text)
    if clip(text, width) == text:
        texts = [text]
    elif line.style is Style.PLAIN and _GAP in text[_LABEL:]:
        first, *others = text[_LABEL:].split(_GAP)
        texts = [text[:_LABEL] + first]
        for part in others:
            joined = f"{texts[-1]}{_GAP}{part}"
            texts[-1:] = [joined] if clip(joined, width) == joined else [texts[-1], " " * _LABEL + part]
    else:
        indent = " " * (_LABEL if line.style is Style.PLAIN else len("ALARM "))
        texts = textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    yield from (FrameLine(text=clip(text, width), style=line.style) for text in texts)


def _head(name: str, glance: Glance, width: int) -> Iterator[FrameLine]:
    standing = glance.standing.value
    if glance.standing not in ENDED:
        standing += f", last line {duration_text(glance.age_s)} ago" if glance.starts else ""
    room = width - len(standing) - 2
    shown = name if len(name) <= room else "..." + name[len(name) - room + 3 :]
    yield FrameLine(text=shown.ljust(room) + "  " + standing, style=Style.TITLE)
    if glance.standing is Standing.NO_FILE:
        yield FrameLine(text=f"no metrics yet; waited {duration_text(glance.age_s)}", style=Style.FAINT)
    if glance.starts:
        yield FrameLine(text=_facts(glance.starts), style=Style.FAINT)


def _facts(starts: Sequence[Start]) -> str:
    start = starts[-1]
    words = [f"{start.world_size} rank(s) on {start.device_type or 'unknown'}"] if start.world_size else []
    words += [
        f"{key.removesuffix('_size').removesuffix('_model_parallel').replace('_', ' ')} {size}"
        for key, size in start.layout.items()
        if size > 1 and key != "world_size"
    ]
    words += [f"{start.parameters / 1e6:,.1f} M parameters".replace(",", " ")] if start.parameters else []
    words += ["resumed once" if len(starts) == 2 else f"resumed {len(starts) - 1} times"] if len(starts) > 1 else []
    return ", ".join(words)


def _row(label: str, *parts: str) -> str:
    return label.ljust(_LABEL) + _GAP.join(part for part in parts if part)


def _progress(glance: Glance, sample: Sample, width: int, charset: Charset) -> Iterator[str]:
    if not sample.train_iters:
        yield _row("iteration", str(sample.iteration))
        return
    done = f"{sample.iteration}/{sample.train_iters}"
    fraction = sample.iteration / sample.train_iters
    typical_ms = recent(glance.current, len(glance.current), iteration_ms)
    left_s = (sample.train_iters - sample.iteration) * (typical_ms or 0.0) / 1e3
    left = f"{duration_text(left_s)} left" if glance.standing is Standing.RUNNING and typical_ms else ""
    tail = f"{100 * fraction:3.0f} %   {left}".rstrip()
    size = max(8, min(40, width - _LABEL - len(done) - len(tail) - 6))
    yield _row("iteration", done, bar(fraction, size, charset), tail)


def _loss(glance: Glance, sample: Sample, width: int, charset: Charset) -> Iterator[str]:
    losses = [each.loss for each in glance.samples if each.loss is not None]
    now = "not measured (update skipped)" if sample.loss is None else f"{sample.loss:.4f}"
    norm = f"grad norm {sample.grad_norm:.3f}" if sample.grad_norm is not None else ""
    size = max(8, min(40, width - _LABEL - len(now) - len(norm) - 6))
    yield _row("loss", now, sparkline(losses, size, charset), norm)


def _speed(glance: Glance, sample: Sample, window: int) -> Iterator[str]:
    rate = amount_text(sample.tflops_per_rank, "TFLOP/s/rank", 4 if (sample.tflops_per_rank or 1) < 1 else 1)
    yield _row(
        "speed",
        amount_text(sample.elapsed_ms, "ms/iteration"),
        amount_text(sample.tokens_per_s, "tokens/s", 0),
        rate if sample.tflops_per_rank is not None else "",
    )
    predicted = sample.extra.get(PREDICTED_ITERATION)
    if predicted is not None:
        found = recent(glance.current, window, iteration_ms)
        yield _row("  predicted", amount_text(predicted, "ms/iteration"), _against(found, predicted))


def _against(measured: float | None, predicted: float) -> str:
    if measured is None:
        return ""
    text = f"measured {amount_text(measured, 'ms')}"
    return f"{text} ({100 * (measured / predicted - 1):+.1f} %)" if predicted > 0 else text


def _recompute(glance: Glance, sample: Sample, window: int, width: int, charset: Charset) -> Iterator[str]:
    hidden, exposed = sample.extra.get(HIDDEN), sample.extra.get(EXPOSED)
    if hidden is not None and exposed is not None:
        total = hidden + exposed
        part = hidden / total if total > 0 else 0.0
        texts = (f"hidden {amount_text(hidden, 'ms')}", f"exposed {amount_text(exposed, 'ms')}")
        size = max(8, min(20, width - _LABEL - sum(map(len, texts)) - 24))
        picture = f"{bar(part, size, charset)} {100 * part:3.0f} % hidden" if total > 0 else "nothing to recompute"
        yield _row("recompute", *texts, picture)
    predicted = sample.extra.get(PREDICTED_EXPOSED)
    if predicted is not None:
        found = recent(glance.current, window, extra(EXPOSED))
        yield _row("  predicted", f"exposed {amount_text(predicted, 'ms')}", _against(found, predicted))
    bubble = sample.extra.get(BUBBLE)
    if bubble is not None:
        yield _row("bubble", f"{100 * bubble:.1f} % of a step waits for peers and recomputes nothing")


def _window_table(sample: Sample, width: int, charset: Charset) -> Iterator[str]:
    found = windows_of(sample)
    if not found:
        return
    size = max(8, min(30, width - _LABEL - 40))
    yield ""
    yield f"{'windows':<{_LABEL}}{'a step':>8}{'length ms':>11}  {'filled':<{size + 6}}{'overrun ms':>11}"
    for each in found:
        count = "-" if each.count is None else f"{each.count:.1f}".removesuffix(".0")
        overrun = "-" if each.overrun_ms is None else f"{each.overrun_ms:.1f}"
        filled = f"{bar(each.filled_fraction, size, charset)} {100 * each.filled_fraction:3.0f} %"
        yield f"{each.kind:<{_LABEL}}{count:>8}{each.length_ms:>11.1f}  {filled}{overrun:>11}"


_HELD = (("kept_peak_bytes", "kept"), ("held_peak_bytes", "with recomputed"), ("prefetched_peak_bytes", "ahead"))


def _memory(sample: Sample) -> Iterator[str]:
    low, high = sample.peak_memory_min_bytes, sample.peak_memory_max_bytes
    held = [
        f"{word} {bytes_text(sample.extra[f'overlap/{name}'])}"
        for name, word in _HELD
        if f"overlap/{name}" in sample.extra
    ]
    stages = stage_bytes(sample)
    if held or stages or high is not None:
        yield ""
    if high is not None:
        both = low is not None and bytes_text(low) != bytes_text(high)
        least = f"{bytes_text(low or 0)} to " if both else ""
        yield _row("memory", f"peak {least}{bytes_text(high)} a rank")
    if held:
        yield _row("activations", *held)
    for stage, figures in stages.items():
        words = (
            f"{key.removesuffix('_bytes').replace('_', ' ')} {bytes_text(value)}" for key, value in figures.items()
        )
        yield _row(f"  stage {stage}", *words)


def _news(glance: Glance) -> Iterator[str]:
    found = glance.evaluation
    if found is not None:
        loss = "-" if found.loss is None else f"{found.loss:.4f}"
        yield _row("evaluation", f"{found.split} loss {loss} at iteration {found.iteration}")
    if glance.event is not None:
        yield _row("event", glance.event.message or glance.event.event)
    if glance.unreadable:
        yield _row("file", f"{glance.unreadable} line(s) that cannot be read were left out")


def _verdict(glance: Glance, alarms: Sequence[Alarm]) -> Iterator[FrameLine]:
    for alarm in alarms:
        yield FrameLine(text=f"ALARM {alarm.message}", style=Style.BAD)
    if not alarms and glance.latest is not None:
        yield FrameLine(text="no alarm", style=Style.GOOD)
