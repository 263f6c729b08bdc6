"""`overlap-recompute simulate`: an iteration of a plan, predicted from a profile."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.outputs import check_outputs
from overlap_recompute.cli.parser import one_of, refuse_idle
from overlap_recompute.cli.plan_texts import in_mib, in_ms
from overlap_recompute.cli.sources import (
    add_budget_arguments,
    add_source_arguments,
    budget_of,
    microbatches_of,
    profile_and_plan,
)
from overlap_recompute.cli.tables import table
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.files import save_text
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import layout_text
from overlap_recompute.plan.validation import check_plan_fits, read_plan
from overlap_recompute.planner import PLANNERS, make_plan
from overlap_recompute.simulator import SimulationResult, simulate
from overlap_recompute.simulator.chrome import spans_csv, stages_csv, trace_text
from overlap_recompute.simulator.pictures import draw

DESCRIPTION = """\
Predict one iteration: run the schedule of a plan, pass by pass and transfer by transfer, with the times of a profile.
Says how long it takes, how much recompute is hidden and exposed on each stage, the bubble and the memory.
"""
EPILOG = """examples:
  overlap-recompute simulate profile.json plan.json
  overlap-recompute simulate profile.json plan.json --microbatches 512
  overlap-recompute simulate profile.json --planner heu --memory-gib 4
  overlap-recompute simulate --model gpt-7b --hardware a100-40gb-nvlink --tensor-parallel 4 --planner full
  overlap-recompute simulate profile.json plan.json --trace trace.json   # open in https://ui.perfetto.dev
  overlap-recompute simulate profile.json plan.json --csv spans.csv --stages-csv stages.csv
"""
MOST_DRAWN = 4096
"""Passes of a picture; more would be finer than its characters."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_source_arguments(parser)
    parser.add_argument("plan", type=Path, nargs="?", help="a plan for the profile's model; or give --planner")
    parser.add_argument("--planner", metavar="NAME", help="make the plan here, e.g. heu, full or none")
    add_budget_arguments(parser)
    parser.add_argument("--every-microbatch", action="store_true", help="simulate each; the result is the same, later")
    parser.add_argument(
        "--trace", metavar="FILE", type=Path, help="write the timeline for Perfetto or chrome://tracing"
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the timeline, one span a line")
    parser.add_argument("--stages-csv", metavar="FILE", type=Path, help="write the table of stages")
    parser.add_argument("--picture", action="store_true", help="draw the timeline also where the output is no terminal")
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Simulate and write what was asked for."""
    outputs = {"--trace": options.trace, "--csv": options.csv, "--stages-csv": options.stages_csv}
    check_outputs(outputs, [options.profile, options.plan])
    profile, path = profile_and_plan(options)
    plan = _plan(options, profile, path)
    passes = 2 * plan.layout.microbatches * plan.layout.chunks * len(plan.stages)
    draws = options.picture or (not options.json and out.isatty() and passes <= MOST_DRAWN)
    timeline = draws or options.trace is not None or options.csv is not None
    result = simulate(profile, plan, timeline=timeline, every_microbatch=options.every_microbatch)
    written = _write_files(options, result)
    if options.json:
        out.write(json.dumps(_as_json(plan, result), indent=2) + "\n")
        return 0
    out.write(_report(profile, plan, result))
    if draws:
        out.write("\n" + draw(result, shutil.get_terminal_size((120, 24)).columns) + "\n")
    out.write("".join(f"wrote {path}\n" for path in written))
    return 0


def _plan(options: argparse.Namespace, profile: Profile, path: Path | None) -> Plan:
    if (path is None) == (options.planner is None):
        found = "neither a plan nor --planner" if path is None else f"the plan {path} and --planner"
        raise ConfigError(found, "one of the two", "name a plan file, or a planner that makes one")
    if path is None:
        planner = one_of("--planner", options.planner, PLANNERS)
        plan = make_plan(profile, planner=planner, budget_bytes=budget_of(options, profile))
    else:
        refuse_idle(options, ("--memory-gib", "--memory-share"), "with a plan", "it with --planner only")
        plan = read_plan(path)
        check_plan_fits(plan, profile, str(path))
    if options.microbatches is None:
        return plan
    layout = dataclasses.replace(plan.layout, microbatches=microbatches_of(options.microbatches))
    return dataclasses.replace(plan, layout=layout)


def _write_files(options: argparse.Namespace, result: SimulationResult) -> list[Path]:
    wanted = ((options.trace, trace_text), (options.csv, spans_csv), (options.stages_csv, stages_csv))
    for path, text_of in wanted:
        if path is not None:
            save_text(path, text_of(result))
    return [path for path, _ in wanted if path is not None]


def _report(profile: Profile, plan: Plan, result: SimulationResult) -> str:
    origin = profile.origin
    lines = [
        f"model: {profile.model}",
        f"times: {origin.source}, {origin.hardware}{f' ({origin.note})' if origin.note else ''}",
        f"plan: {plan.planner}, layers {layout_text(plan.layout.split)}, {result.microbatches} microbatches",
        "",
        f"iteration: {in_ms(result.iteration_us)}, of it update {in_ms(result.update_us)}",
        f"bubble: {result.bubble_fraction:.1%} of the stages' time",
        f"tokens/s: {result.tokens_per_s:,.0f}",
    ]
    if result.tflops_per_gpu:
        mfu = f", {result.mfu:.1%} of the peak" if result.mfu else ""
        lines.append(f"model TFLOP/s per device: {result.tflops_per_gpu:.4g}{mfu}")
    if result.period_us:
        lines.append(f"steady state: {in_ms(result.period_us)} a microbatch")
    if result.simulated_microbatches < result.microbatches:
        lines.append(f"{result.simulated_microbatches} microbatches were simulated, the rest repeats the steady state")
    header = ["stage", "compute", "hidden", "exposed", "waits", "bubble", "memory", "budget"]
    rows = [
        [
            str(stage.stage),
            *map(in_ms, (stage.compute_us, stage.hidden_us, stage.exposed_us, stage.wait_us, stage.bubble_us)),
            in_mib(stage.peak_bytes),
            in_mib(plan.budget_bytes),
        ]
        for stage in result.stages
    ]
    note = (
        "hidden, exposed: recompute inside and outside of waits; bubble: the part of the waits for other stages\n"
        "layers: by stage, E embedding, t a layer, L head and loss; every figure is simulated"
    )
    return "\n".join([*lines, "", table(header, rows), "", note, ""])


def _as_json(plan: Plan, result: SimulationResult) -> dict[str, Any]:
    facts = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    stages = [dataclasses.asdict(stage) for stage in facts.pop("stages")]
    for stage in stages:
        del stage["memory"]
    del facts["spans"]
    return {"schema": "simulation/1", "planner": plan.planner, **facts, "stages": stages}


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
