#!/usr/bin/env python3
"""Draw the loss of one or several runs: plot_metrics.py RUN [RUN ...] --output loss.png --yardstick "unigrams=6.1"."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.pretrain.logs.metrics_reader import read_metrics
from megatron.pretrain.logs.plots import Curve, plot_loss
from megatron.pretrain.logs.yardsticks import yardstick
from overlap_recompute.plan.errors import UserError


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Draw the loss of one or several runs.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder or metrics file; NAME=RUN names it")
    parser.add_argument("--output", type=Path, required=True, help="the picture: .png, .svg or .pdf")
    parser.add_argument(
        "--yardstick", action="append", default=[], type=yardstick, metavar="NAME=VALUE",
        help="a horizontal line, in nats per token; may be given several times",
    )  # fmt: skip
    parser.add_argument("--over-tokens", action="store_true", help="tokens instead of iterations on the x axis")
    parser.add_argument("--title", default="", help="above the picture")
    return parser.parse_args(argv)


def curve(argument: str) -> Curve:
    """Read one RUN argument; without a name it is called after its folder."""
    name, _, run = argument.rpartition("=") if not Path(argument).exists() else ("", "", argument)
    metrics = read_metrics(Path(run))
    return Curve(label=name or metrics.path.resolve().parent.name, metrics=metrics)


def main(argv: Sequence[str]) -> int:
    """Draw, and say where the picture is."""
    arguments = parse_arguments(argv)
    try:
        curves = [curve(run) for run in arguments.runs]
        plot_loss(
            curves, arguments.output, yardsticks=dict(arguments.yardstick), over_tokens=arguments.over_tokens,
            title=arguments.title,
        )  # fmt: skip
    except UserError as error:
        print(f"plot_metrics.py: {error}", file=sys.stderr)
        return 2
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
