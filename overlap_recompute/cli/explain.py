"""`overlap-recompute explain`: why units are kept or recomputed, what binds, and what more memory would buy."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.parser import whole_number
from overlap_recompute.cli.plan_texts import in_mib, in_ms
from overlap_recompute.cli.sources import gib_in_bytes
from overlap_recompute.cli.tables import table
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.validation import check_plan_fits, read_plan, read_profile
from overlap_recompute.planner.explain import MEMORY, StageFacts, UnitFacts, price_of_memory, stage_facts, unit_facts

DESCRIPTION = """\
Say of each stage which constraint binds, of the units of a layer why they are kept or recomputed and what the opposite
would cost, and what more memory would buy.
"""
EPILOG = """examples:
  overlap-recompute explain plan.json --profile profile.json
  overlap-recompute explain plan.json --profile profile.json --layer 7 --unit linear_fc1
  overlap-recompute explain plan.json --profile profile.json --more-gib 2 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("plan", type=Path, help="the plan to explain")
    parser.add_argument("--profile", type=Path, required=True, help="the profile that it was made from")
    parser.add_argument("--layer", metavar="N", help="explain this layer (the first one of each stage)")
    parser.add_argument("--unit", metavar="NAME", help="explain this unit alone")
    parser.add_argument("--more-gib", metavar="X", default="1", help="of memory whose worth is told (1)")
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Explain."""
    profile, plan = read_profile(options.profile), read_plan(options.plan)
    check_plan_fits(plan, profile, str(options.plan))
    stages = [stage_facts(profile, plan, stage.stage) for stage in plan.stages]
    units = [facts for layer in _layers(options, plan) for facts in unit_facts(profile, plan, layer)]
    if options.unit is not None:
        units = _chosen(units, options.unit)
    price = price_of_memory(profile, plan, gib_in_bytes("--more-gib", options.more_gib))
    if options.json:
        data = {
            "schema": "explanation/1",
            "stages": [dataclasses.asdict(facts) for facts in stages],
            "units": [{**dataclasses.asdict(facts), "reason": facts.reason} for facts in units],
            "price_of_memory": dataclasses.asdict(price),
        }
        out.write(json.dumps(data, indent=2) + "\n")
        return 0
    lines = [_binding(facts) for facts in stages]
    if price.saved_us > 0:
        share = price.saved_us / plan.predicted_iteration_us
        worth = f"saves {in_ms(price.saved_us)} of an iteration of {in_ms(plan.predicted_iteration_us)} ({share:.1%})"
    else:
        worth = "buys nothing"
    lines += [f"{in_mib(price.more_bytes)} more on every rank {worth}", "", _table(units), ""]
    lines += [f"layer {facts.layer}, {facts.unit}: {facts.reason}" for facts in units]
    out.write("\n".join([*lines, ""]))
    return 0


def _layers(options: argparse.Namespace, plan: Plan) -> list[int]:
    if options.layer is None:
        return [stage.layers[0].layer for stage in plan.stages if stage.layers]
    layer = whole_number("--layer", options.layer, 0)
    known = [entry.layer for stage in plan.stages for entry in stage.layers]
    if layer not in known:
        raise ConfigError(f"--layer {layer}", f"a layer from {min(known)} to {max(known)}", "correct --layer")
    return [layer]


def _chosen(units: list[UnitFacts], name: str) -> list[UnitFacts]:
    chosen = [facts for facts in units if facts.unit == name]
    if not chosen:
        known = ", ".join(dict.fromkeys(facts.unit for facts in units)) or "none"
        raise ConfigError(f"--unit {name}", f"a unit that can be dropped ({known})", "correct --unit")
    return chosen


def _binding(facts: StageFacts) -> str:
    if facts.binding == MEMORY:
        return (
            f"stage {facts.stage}: memory binds; {in_ms(facts.exposed_us)} of recompute is exposed per microbatch, "
            f"{in_ms(facts.hidden_us)} hidden; {in_mib(facts.slack_bytes)} left are too little for another unit"
        )
    return (
        f"stage {facts.stage}: nothing binds; all recompute ({in_ms(facts.hidden_us)} per microbatch) is hidden, "
        f"{in_mib(facts.slack_bytes)} left"
    )


def _table(units: list[UnitFacts]) -> str:
    header = ["layer", "unit", "now", "replay", "where", "otherwise: memory", "exposed", "fits"]
    rows = [
        [
            str(facts.layer),
            facts.unit,
            "recomputed" if facts.dropped else "kept",
            in_ms(facts.replay_us),
            facts.window or ("on demand" if facts.dropped else ""),
            f"{'+' if facts.flipped_bytes >= 0 else '-'}{in_mib(abs(facts.flipped_bytes))}",
            f"{facts.flipped_exposed_us / 1000:+.2f} ms",
            "yes" if facts.fits_flipped else "no",
        ]
        for facts in units
    ]
    return table(header, rows)


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
