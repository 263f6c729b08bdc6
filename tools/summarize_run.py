#!/usr/bin/env python3
"""Say what a run came to: summarize_run.py RUN [--yardstick "unigrams=6.1"] [--plot loss.png] [--json]."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.pretrain.logs.metrics_reader import read_metrics
from megatron.pretrain.logs.summary import render, summarize
from megatron.pretrain.logs.wire import to_json_value
from megatron.pretrain.logs.yardsticks import yardstick
from overlap_recompute.plan.errors import UserError


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Say what a run came to.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder or metrics file")
    parser.add_argument(
        "--yardstick", action="append", default=[], type=yardstick, metavar="NAME=VALUE",
        help="a loss to compare with, in nats per token; may be given several times",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, help="a picture of the loss to mention")
    parser.add_argument("--json", action="store_true", help="for a program instead of a person")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Print the summary."""
    arguments = parse_arguments(argv)
    try:
        metrics = read_metrics(arguments.run)
    except UserError as error:
        print(f"summarize_run.py: {error}", file=sys.stderr)
        return 2
    summary = summarize(metrics, yardsticks=dict(arguments.yardstick), plot_path=arguments.plot)
    print(json.dumps(to_json_value(summary), indent=2) if arguments.json else render(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
