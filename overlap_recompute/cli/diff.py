"""`overlap-recompute diff`: what one plan does otherwise than another."""

import argparse
import json
from pathlib import Path
from typing import Any, TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.plan_texts import in_mib, in_ms, layer_lines
from overlap_recompute.cli.tables import table
from overlap_recompute.plan.codec import FileError
from overlap_recompute.plan.plan_file import Plan, StagePlan
from overlap_recompute.plan.split import layer_count, layout_text
from overlap_recompute.plan.validation import read_plan

DESCRIPTION = "Compare two plans of one model. Exit status 0: they say the same; 1: they differ."
EPILOG = """examples:
  overlap-recompute diff old.json new.json
  overlap-recompute diff heu.json opt.json --json
"""
SAME, DIFFERENT = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("first", type=Path, help="a plan")
    parser.add_argument("second", type=Path, help="another one")
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Compare and write what differs."""
    first, second = read_plan(options.first), read_plan(options.second)
    _refuse_strangers(first, second, options)
    changes = differences(first, second)
    if options.json:
        out.write(json.dumps(changes, indent=2) + "\n")
    else:
        out.write(_report(first, second, changes))
    return DIFFERENT if changes["layers"] or changes["settings"] else SAME


def differences(first: Plan, second: Plan) -> dict[str, Any]:
    """What differs, as plain values: settings by name, decisions by layer, predictions by stage."""
    settings = {
        "layout": (layout_text(first.layout.split), layout_text(second.layout.split)),
        "microbatches": (first.layout.microbatches, second.layout.microbatches),
        "stages": (len(first.stages), len(second.stages)),
    }
    for old, new in zip(first.stages, second.stages, strict=False):
        settings[f"stage {old.stage} windows"] = (", ".join(old.window_kinds), ", ".join(new.window_kinds))
        settings[f"stage {old.stage} prefetch_cap_bytes"] = (old.prefetch_cap_bytes, new.prefetch_cap_bytes)
    before, after = _dropped(first), _dropped(second)
    return {
        "settings": {name: list(pair) for name, pair in settings.items() if pair[0] != pair[1]},
        "layers": {
            str(layer): {
                "recomputed_only_in_second": [unit for unit in after[layer] if unit not in before[layer]],
                "recomputed_only_in_first": [unit for unit in before[layer] if unit not in after[layer]],
            }
            for layer in sorted(before)
            if before[layer] != after[layer]
        },
        "predicted_iteration_us": [first.predicted_iteration_us, second.predicted_iteration_us],
        "stages": [_stage_figures(first.stages), _stage_figures(second.stages)],
    }


def _dropped(plan: Plan) -> dict[int, tuple[str, ...]]:
    return {entry.layer: entry.dropped for stage in plan.stages for entry in stage.layers}


def _stage_figures(stages: tuple[StagePlan, ...]) -> list[dict[str, float]]:
    return [
        {
            "recompute_us": stage.predicted.recompute_us,
            "exposed_us": stage.predicted.exposed_us,
            "memory_bytes": stage.predicted.memory.total_bytes,
        }
        for stage in stages
    ]


def _refuse_strangers(first: Plan, second: Plan, options: argparse.Namespace) -> None:
    same = first.model_fingerprint == second.model_fingerprint
    if not same or layer_count(first.layout.split) != layer_count(second.layout.split):
        raise FileError(
            f"{options.first} for model {first.model_fingerprint} and {options.second} for {second.model_fingerprint}",
            "two plans of one model",
            "compare plans that were made from the same profile",
        )


def _report(first: Plan, second: Plan, changes: dict[str, Any]) -> str:
    lines = [f"- {first.planner}, made {first.created}", f"+ {second.planner}, made {second.created}", ""]
    for name, (old, new) in changes["settings"].items():
        lines += [f"- {name}: {old}", f"+ {name}: {new}"]
    if changes["layers"]:
        for sign, plan in (("-", first), ("+", second)):
            entries = [
                entry for stage in plan.stages for entry in stage.layers if str(entry.layer) in changes["layers"]
            ]
            lines += [f"{sign} {line}" for line in layer_lines(entries)]
    if not changes["settings"] and not changes["layers"]:
        lines.append("no decision differs")
    rows = []
    for label, plan in (("-", first), ("+", second)):
        for stage in plan.stages:
            predicted = stage.predicted
            cells = [in_ms(predicted.recompute_us), in_ms(predicted.exposed_us), in_mib(predicted.memory.total_bytes)]
            rows.append([label, str(stage.stage), str(len(stage.layers)), *cells])
    header = ["", "stage", "layers", "recompute", "exposed", "memory"]
    old_us, new_us = changes["predicted_iteration_us"]
    ratio = f" ({new_us / old_us - 1:+.1%})" if old_us else ""
    return "\n".join([*lines, "", table(header, rows), "", f"iteration: {in_ms(old_us)} -> {in_ms(new_us)}{ratio}", ""])


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
