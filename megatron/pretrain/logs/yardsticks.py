"""Losses to compare a run with, as the tools' command lines write them."""

import argparse
import math


def yardstick(text: str) -> tuple[str, float]:
    """Read "NAME=VALUE" (a loss in nats per token), for argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: no name, or the value is not a finite number.
    """
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected NAME=VALUE such as 'unigram entropy=6.1'")
    return name, value
