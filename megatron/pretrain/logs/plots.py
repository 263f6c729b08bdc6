"""A loss curve from metrics files, as a picture for a README or a report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.pretrain.logs.metrics_reader import RunMetrics
from megatron.pretrain.logs.optional import load
from overlap_recompute.plan.errors import ConfigError, DataError
from overlap_recompute.plan.files import replace_file

FORMATS = (".png", ".svg", ".pdf")
"""Endings of the output file that are known."""

# Okabe and Ito's palette: told apart with every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_YARDSTICK_COLOUR, _INK = "#555555", "#222222"
_SMOOTH_ABOVE_POINTS = 60
_SIZE_INCHES, _DOTS_PER_INCH = (8.0, 4.5), 150
_STYLE = {
    "font.size": 12,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.hashsalt": "loss",  # the same figures give the same file
    "svg.fonttype": "none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One run in the picture."""

    label: str
    """Its name in the legend."""

    metrics: RunMetrics
    """Its figures."""


def plot_loss(
    curves: Sequence[Curve],
    output: Path,
    *,
    yardsticks: Mapping[str, float] | None = None,
    over_tokens: bool = False,
    title: str = "",
) -> None:
    """Draw training loss (line) and validation loss (dots) of one or several runs.

    A run of many points is drawn thin, with a moving average over it. Losses that are not finite leave a gap.

    Args:
        curves: the runs, best at most six.
        output: the picture, .png, .svg or .pdf; replaced in one step. Its folder is created.
        yardsticks: horizontal lines by name, in nats per token, such as the entropy of the corpus' unigrams.
        over_tokens: show tokens instead of iterations on the x axis, for runs whose batches differ in size.
        title: above the picture.

    Raises:
        ConfigError: unknown ending, matplotlib missing, or the picture cannot be written.
        DataError: a run has no loss to draw yet.
    """
    _check(curves, output)
    matplotlib = load("matplotlib", wanted_by=f"a plot at {output}", package="matplotlib")
    figures = load("matplotlib.figure", wanted_by=f"a plot at {output}", package="matplotlib")
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=_SIZE_INCHES, layout="constrained")  # not pyplot's: no window, no global state
        axes = figure.add_subplot()
        for index, curve in enumerate(curves):
            _draw(axes, curve, _COLOURS[index % len(_COLOURS)], over_tokens=over_tokens, alone=len(curves) == 1)
        _draw_yardsticks(axes, yardsticks or {})
        if over_tokens:
            ticker = load("matplotlib.ticker", wanted_by=f"a plot at {output}", package="matplotlib")
            axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))  # 200k, 1.2M
        _finish(axes, x_label="tokens" if over_tokens else "iteration")
        _head(figure, title)
        _save(figure, output)


def _check(curves: Sequence[Curve], output: Path) -> None:
    if output.suffix.lower() not in FORMATS:
        raise ConfigError(f"the picture's name {output}", f"one that ends in {', '.join(FORMATS)}", "rename it")
    for curve in curves:
        if not any(_is_finite(record.loss) for record in curve.metrics.iterations):
            raise DataError(
                f"no loss in {curve.metrics.path}",
                "at least one logged iteration with a finite loss",
                "wait for one (--log-interval iterations), or name another run",
            )


def _draw(axes: Any, curve: Curve, colour: str, *, over_tokens: bool, alone: bool) -> None:
    scale = curve.metrics.runs[0].sequence_length if over_tokens else 1
    records = curve.metrics.iterations
    x = [scale * (record.consumed_samples if over_tokens else record.iteration) for record in records]
    y = [math.nan if record.loss is None or not _is_finite(record.loss) else record.loss for record in records]
    many = len(x) > _SMOOTH_ABOVE_POINTS
    label = "training loss" if alone else curve.label
    single = "." if len(x) == 1 else None
    axes.plot(
        x, y, color=colour, linewidth=1.0 if many else 2.0, alpha=0.3 if many else 1.0, marker=single,
        label=None if many else label,
    )  # fmt: skip
    if many:
        axes.plot(x, _moving_average(y, max(5, len(y) // 40)), color=colour, linewidth=2.2, label=label)
    validation = [record for record in curve.metrics.evaluations if record.split == "validation"]
    if validation:
        axes.plot(
            [scale * (record.consumed_samples if over_tokens else record.iteration) for record in validation],
            [record.loss for record in validation],
            linestyle="none", marker="o", markersize=7, markeredgecolor=_INK, markerfacecolor=colour, zorder=4,
            label="validation loss" if alone else f"{curve.label}, validation",
        )  # fmt: skip


def _draw_yardsticks(axes: Any, yardsticks: Mapping[str, float]) -> None:
    """Draw dashed lines; the highest has its name above it, the others below, so that two close ones stay legible."""
    highest = max(yardsticks.values(), default=0.0)
    for name, value in yardsticks.items():
        axes.axhline(value, color=_YARDSTICK_COLOUR, linewidth=1.4, linestyle=(0, (6, 3)), zorder=1)
        above = value == highest
        axes.annotate(
            f"{name}: {value:.2f}", xy=(1.0, value), xycoords=("axes fraction", "data"),
            xytext=(-6, 4 if above else -4), textcoords="offset points", ha="right",
            va="bottom" if above else "top", color=_YARDSTICK_COLOUR,
        )  # fmt: skip


def _finish(axes: Any, *, x_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel("loss (nats per token)")
    axes.grid(visible=True, axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02, y=0.08)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _head(figure: Any, title: str) -> None:
    """Title and legend above the picture, where they hide nothing."""
    entries = len(figure.axes[0].get_legend_handles_labels()[1])
    figure.legend(
        loc="outside upper center", ncols=min(3, entries), frameon=False, title=title or None, title_fontsize=14
    )


def _save(figure: Any, output: Path) -> None:
    kind = output.suffix.lower().removeprefix(".")
    metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(output, lambda stream: figure.savefig(stream, format=kind, dpi=_DOTS_PER_INCH, metadata=metadata))
    except OSError as error:
        raise ConfigError(
            f"the picture {output} cannot be written ({error.strerror or error})",
            "a folder that may be written to, with room on the disk",
            "choose another --output",
        ) from error


def _moving_average(values: Sequence[float], width: int) -> list[float]:
    """Mean of the finite values within half of `width` to either side; the window shrinks towards the ends."""
    return [_mean(values[max(0, centre - width // 2) : centre + width // 2 + 1]) for centre in range(len(values))]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _is_finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)
