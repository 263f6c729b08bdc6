"""Draw the two lanes of a backward pass, compute above traffic, from a run's own trace (--overlap-recompute-trace).

.venv/bin/python tools/draw_lanes.py runs/quickstart/trace/rank-00000.json --output lanes.png
"""

import argparse
import pathlib
import sys
from dataclasses import dataclass

from megatron.overlap.trace_files import read_trace
from overlap_recompute.plan.actions import Kind, parse_action
from overlap_recompute.plan.errors import DataError, UserError

LANES = ("schedule", "windows", "hidden", "exposed")
COLOURS = {"schedule": "#d5dbe3", "windows": "#f2b134", "hidden": "#2a9d5c", "exposed": "#c8403a"}
LABELS = {
    "schedule": "forward and backward",
    "windows": "waiting for a collective or a transfer",
    "hidden": "recompute, hidden in a wait",
    "exposed": "recompute, on the critical path",
}
ROWS = {"schedule": 1, "hidden": 1, "exposed": 1, "windows": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A bar: its lane, its name, and where it lies in milliseconds of the picture."""

    lane: str
    name: str
    begin_ms: float
    end_ms: float


def spans_of(path: pathlib.Path) -> list[Span]:
    """All spans of a trace."""
    return [
        Span(
            lane=LANES[event["tid"]],
            name=event["name"],
            begin_ms=event["ts"] / 1e3,
            end_ms=(event["ts"] + event["dur"]) / 1e3,
        )
        for event in read_trace(path)
        if event.get("ph") == "X"
    ]


def middle_backward(spans: list[Span]) -> Span:
    """The backward pass in the middle of the run: caches are warm, and it is no step's first."""
    passes = [span for span in spans if span.lane == "schedule" and parse_action(span.name).kind is Kind.B]
    if not passes:
        raise DataError("a trace without a backward pass", "a trace of at least one step", "let the run go on longer")
    return passes[len(passes) // 2]


def draw(spans: list[Span], shown: Span, output: pathlib.Path, title: str) -> None:
    """Write the picture of what happened within `shown`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 2.9), layout="constrained")
    for lane in ("schedule", "windows", "hidden", "exposed"):
        inside = [s for s in spans if s.lane == lane and s.end_ms > shown.begin_ms and s.begin_ms < shown.end_ms]
        bars = [(s.begin_ms - shown.begin_ms, s.end_ms - s.begin_ms) for s in inside]
        axes.broken_barh(bars, (ROWS[lane] + 0.1, 0.8), color=COLOURS[lane], edgecolor="white", label=LABELS[lane])
        for span in inside:
            width_ms = span.end_ms - span.begin_ms
            if lane in ("hidden", "exposed") and width_ms > 0.012 * (shown.end_ms - shown.begin_ms):
                unit = span.name[2 : span.name.index(")")]
                centre_ms = (span.begin_ms + span.end_ms) / 2 - shown.begin_ms
                axes.text(centre_ms, 1.5, unit, rotation=90, ha="center", va="center", color="white", fontsize=7)
    axes.set_xlim(0, shown.end_ms - shown.begin_ms)
    axes.set_ylim(0, 2)
    axes.set_yticks([0.5, 1.5], ["communication\nin flight", "compute"])
    axes.set_xlabel("ms since the backward pass began")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.32), frameon=False, fontsize=8)
    figure.savefig(output, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=pathlib.Path, help="one rank's trace")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the picture: .png or .svg")
    parser.add_argument("--title", default="", help="a line above it")
    options = parser.parse_args()
    try:
        spans = spans_of(options.trace)
        shown = middle_backward(spans)
    except UserError as error:
        print(f"draw_lanes.py: {error}", file=sys.stderr)
        return 2
    draw(spans, shown, options.output, options.title or f"backward pass {shown.name} of {options.trace.stem}")
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
