"""`overlap-recompute sweep --sensitivity`: where a gain vanishes, and how wrong a profile may be."""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from overlap_recompute.cli.parser import one_of, refuse_idle, whole_number
from overlap_recompute.cli.sources import budget_of
from overlap_recompute.cli.status_line import StatusLine
from overlap_recompute.cli.tables import table
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.validation import read_profile
from overlap_recompute.planner.comparison import ARMS
from overlap_recompute.planner.sweeps import FACTORS, Sensitivity, sensitivity
from overlap_recompute.simulator.analytic_options import profile_from_options

COMPUTED = Path()
"""--sensitivity without a file: the profile is computed for the model and hardware that are named."""
LEAST_GAIN = 1.01
"""Below it a gain has vanished."""
LEAST_STALE_GAIN = 0.995
"""Below it a plan has lost: the simulator tells no smaller difference."""
SIZES = ("tensor_parallel", "pipeline_parallel", "micro_batch")
FLAGS = ("--planner", "--baseline", "--memory-gib", "--memory-share")
"""That need --sensitivity."""
OF_A_SWEEP = ("--gpus", "--global-batch", "--arms", "--csv")
OF_A_MODEL = ("--models", "--hardware", "--tensor-parallel", "--pipeline-parallel", "--micro-batch", "--sequence")
PLANNER, BASELINE = "mix", "adapipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    group = parser.add_argument_group(
        "sensitivity, in place of a sweep",
        "how the gain over recompute on demand changes with bandwidth, latency and compute speed",
    )
    group.add_argument(
        "--sensitivity", metavar="PROFILE", type=Path, nargs="?", const=COMPUTED,
        help="of a profile; without a file of one model on one hardware with one layout, named by the flags above",
    )  # fmt: skip
    group.add_argument("--planner", metavar="NAME", help=f"ours ({PLANNER})")
    group.add_argument("--baseline", metavar="NAME", help=f"on demand ({BASELINE}: the least that fits)")
    group.add_argument("--memory-gib", metavar="X", help="memory of one rank")
    group.add_argument("--memory-share", metavar="X", help="instead: 0 is what full recompute needs, 1 what none needs")


def run_sensitivity(options: argparse.Namespace, out: TextIO) -> int:
    """Write the table and what it says.

    Raises:
        UserError: names or values that are not right, or an arm that does not fit.
    """
    refuse_idle(options, OF_A_SWEEP, "with --sensitivity", "it in a sweep only")
    if options.sensitivity != COMPUTED:
        refuse_idle(options, OF_A_MODEL, f"with --sensitivity {options.sensitivity}", "one of the two")
    if options.memory_gib is None and options.memory_share is None:
        expected, next_step = "the memory of one rank", "add --memory-gib X, or --memory-share X"
        raise ConfigError("--sensitivity without --memory-gib", expected, next_step)
    planner = one_of("--planner", options.planner or PLANNER, ARMS)
    baseline = one_of("--baseline", options.baseline or BASELINE, ARMS)
    profile = _computed(options) if options.sensitivity == COMPUTED else read_profile(options.sensitivity)
    found = []
    with StatusLine() as line:
        for point in sensitivity(profile, planner, baseline, budget_of(options, profile)):
            line.show(f"{point.what} of {point.factor:g} times the profile's")
            found.append(point)
    if options.json:
        data = {
            "schema": "sensitivity/1",
            "points": list(map(dataclasses.asdict, found)),
            "says": says(found, baseline),
        }
        out.write(json.dumps(data, indent=2) + "\n")
        return 0
    header = ["", "times the profile's", "gain", "gain of the plan made for the profile"]
    rows = [[each.what, f"{each.factor:g}", f"{each.gain:.3f}", f"{each.stale_gain:.3f}"] for each in found]
    lines = [
        f"model: {profile.model}",
        f"times: {profile.origin.source}, {profile.origin.hardware}",
        f"gain: throughput with {planner} over that with {baseline}, simulated",
        "",
        table(header, rows),
        "",
        *says(found, baseline),
        "",
    ]
    out.write("\n".join(lines))
    return 0


def _computed(options: argparse.Namespace) -> Profile:
    flags = {name: f"--{name.replace('_', '-')}" for name in ("models", "hardware", *SIZES)}
    named = {name: _only(flag, getattr(options, name)) for name, flag in flags.items()}
    sizes = {name: whole_number(flags[name], named[name], 1) for name in SIZES}
    sequence = None if options.sequence is None else whole_number("--sequence", options.sequence, 1)
    return profile_from_options(
        model=named["models"], hardware=named["hardware"], sequence=sequence,
        tensor_parallel=sizes["tensor_parallel"], pipeline_parallel=sizes["pipeline_parallel"],
        micro_batch=sizes["micro_batch"],
    )  # fmt: skip


def _only(flag: str, value: str | None) -> str:
    words = [] if value is None else [word.strip() for word in value.split(",")]
    if len(words) != 1:
        found = f"no {flag}" if value is None else f"{flag} {value}"
        raise ConfigError(f"--sensitivity without a profile and {found}", "one value", f"give {flag} one value")
    return words[0]


def says(points: Sequence[Sensitivity], baseline: str) -> list[str]:
    """Sentences: where the gain vanishes, and how wrong the profile may be before the plan made for it loses."""
    whats = list(dict.fromkeys(point.what for point in points))
    rows = {what: sorted((p for p in points if p.what == what), key=lambda point: point.factor) for what in whats}
    vanishes = [f"  {what}: {_vanishing(row)}" for what, row in rows.items()]
    loses = [f"  {what}: {_losing(row)}" for what, row in rows.items()]
    return [
        "Where the gain vanishes (below 1 %):", *vanishes,
        f"How wrong the profile may be before the plan made for it loses to {baseline} (by 0.5 %):", *loses,
    ]  # fmt: skip


def _vanishing(row: Sequence[Sensitivity]) -> str:
    own = next((point.gain for point in row if point.factor == 1.0), 1.0)
    if own < LEAST_GAIN:
        better = max(row, key=lambda point: point.gain)
        if better.gain < LEAST_GAIN:
            return f"there is none from {_range()} the profile's"
        return f"none as the profile is ({own - 1:.1%}); at {better.factor:g} times it is {better.gain - 1:.1%}"
    places = _places(bounds(row, lambda point: point.gain, LEAST_GAIN), "and")
    where = f"vanishes {places}" if places else f"it stays from {_range()}"
    return f"{own - 1:.1%} as the profile is; {where} the profile's"


def _losing(row: Sequence[Sensitivity]) -> str:
    own = next((point.stale_gain for point in row if point.factor == 1.0), 1.0)
    if own < LEAST_STALE_GAIN:
        return f"it loses already as the profile is ({own - 1:.1%})"
    places = _places(bounds(row, lambda point: point.stale_gain, LEAST_STALE_GAIN), "or")
    if places:
        return f"it loses where the real one is {places} the profile's"
    least = min(row, key=lambda point: point.stale_gain)
    return f"it never does from {_range()} the profile's; at worst its gain is {least.stale_gain - 1:.1%}"


def _places(found: tuple[float | None, float | None], joined: str) -> str:
    """Words for the two sides; empty if there is none."""
    words = [f"{side} {factor:.2g} times" for side, factor in zip(("below", "above"), found, strict=True) if factor]
    return f" {joined} ".join(words)


def _range() -> str:
    return f"{FACTORS[0]:g} to {FACTORS[-1]:g} times"


def bounds(
    row: Sequence[Sensitivity], value_of: Callable[[Sensitivity], float], least: float
) -> tuple[float | None, float | None]:
    """The factors next to 1, downwards and upwards, at which a value falls below `least`; None where it does not.

    Args:
        row: of one property, by factor.
        value_of: what is looked at.
        least: the value that it must have.
    """
    ones = [place for place, point in enumerate(row) if point.factor == 1.0]
    if not ones:
        return None, None
    down, up = list(reversed(row[: ones[0] + 1])), list(row[ones[0] :])
    return _crossing(down, value_of, least), _crossing(up, value_of, least)


def _crossing(row: Sequence[Sensitivity], value_of: Callable[[Sensitivity], float], least: float) -> float | None:
    for near, far in zip(row, row[1:], strict=False):
        high, low = value_of(near), value_of(far)
        if low < least:
            # Between two factors by the logarithm of the factor.
            part = min(1.0, max(0.0, (high - least) / (high - low))) if high > low else 0.0
            return math.exp(math.log(near.factor) + part * (math.log(far.factor) - math.log(near.factor)))
    return None
