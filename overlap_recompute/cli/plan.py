"""`overlap-recompute plan`: from a profile and a memory budget to what each stage keeps, drops and recomputes where."""

import argparse
import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any, TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.launch import launch_command
from overlap_recompute.cli.outputs import check_outputs
from overlap_recompute.cli.parser import one_of, whole_number
from overlap_recompute.cli.plan_texts import in_mib, in_ms, layer_lines
from overlap_recompute.cli.sources import add_budget_arguments, add_source_arguments, budget_of, profile_of
from overlap_recompute.cli.status_line import StatusLine
from overlap_recompute.cli.tables import table
from overlap_recompute.plan.codec import write_record
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import Split, even_split, layout_text
from overlap_recompute.planner import PLANNERS, make_plan
from overlap_recompute.planner.comparison import FASTER, STOCK_FULL, ArmResult, run_arms
from overlap_recompute.planner.explain import stage_facts
from overlap_recompute.planner.partition import best_split

DESCRIPTION = """\
Decide what every pipeline stage keeps, what it recomputes and in which wait, for a memory budget: prints the decision
stage by stage and the predicted time beside that of every baseline, and writes the plan, the layout and the command
that trains with it.
"""
EPILOG = """examples:
  overlap-recompute plan profile.json --memory-gib 4 --output plan.json
  overlap-recompute plan profile.json --memory-gib 4 --partition          # and how many layers each stage holds
  overlap-recompute plan profile.json --memory-gib 4 --planner opt --time-limit-s 60
  overlap-recompute plan --model gpt-13b --hardware a100-80gb-pcie --tensor-parallel 4 --pipeline-parallel 4
Ctrl-C while opt searches ends the search: the best plan so far is taken.
"""
BASELINES = ("none", STOCK_FULL, "full", "selective", "uniform", "block", "checkmate", "adapipe", "early")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_source_arguments(parser)
    add_budget_arguments(parser)
    parser.add_argument("--planner", metavar="NAME", default="mix", help=f"one of {', '.join(PLANNERS)} (mix)")
    parser.add_argument("--partition", action="store_true", help="search for the best split of the layers, too")
    parser.add_argument("--stages", metavar="N", help="plan for so many stages (the profile's)")
    parser.add_argument("--time-limit-s", metavar="S", default="60", help="for the search of opt (60)")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the plan")
    parser.add_argument("--no-baselines", action="store_true", help="do not plan and simulate the baselines")
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Plan, write the plan, and say what it does."""
    planner = one_of("--planner", options.planner, PLANNERS)
    limit_s = whole_number("--time-limit-s", options.time_limit_s, 1)
    check_outputs({"--output": options.output}, [options.profile])
    profile = profile_of(options)
    budget_bytes = budget_of(options, profile)
    baselines: tuple[ArmResult, ...] = ()
    with StatusLine() as line:
        split = _split(options, profile, budget_bytes, planner)
        plan = make_plan(
            profile, planner=planner, budget_bytes=budget_bytes, split=split, progress=line.show, time_limit_s=limit_s
        )
        if not options.no_baselines:
            baselines = run_arms(profile, BASELINES, budget_bytes, split, lambda name: line.show(f"planning {name}"))
    if options.output is not None:
        write_record(options.output, plan)
    command = launch_command(profile, plan, options.output or Path("plan.json"))
    if options.json:
        out.write(json.dumps(_as_json(plan, baselines, command), indent=2) + "\n")
    else:
        out.write(_report(profile, plan, baselines))
        own = " (the flags of the profiled run: put in your own --train-iters)" if "--train-iters" in command else ""
        out.write(f"\ntrain with{own}:\n  {shlex.join(command)}\n" if command else "")
        out.write(f"\nwrote {options.output}\n" if options.output is not None else "")
    return 0


def _split(options: argparse.Namespace, profile: Profile, budget_bytes: int, planner: str) -> Split | None:
    stages = None if options.stages is None else whole_number("--stages", options.stages, 1)
    if stages is not None and stages > len(profile.layers):
        layers = len(profile.layers)
        raise ConfigError(f"--stages {stages} for {layers} layers", f"at most {layers}", "choose fewer stages")
    if options.partition:
        return best_split(profile, budget_bytes, stages=stages, planner=FASTER.get(planner, planner))
    return None if stages is None else even_split(len(profile.layers), stages, profile.layout.chunks)


def _as_json(plan: Plan, baselines: tuple[ArmResult, ...], command: tuple[str, ...]) -> dict[str, Any]:
    return {
        "schema": "planned/1",
        "plan": dataclasses.asdict(plan),
        "layout": layout_text(plan.layout.split),
        "command": list(command),
        "baselines": [
            {
                "planner": arm.name,
                "fits": arm.result is not None,
                "iteration_us": None if arm.result is None else arm.result.iteration_us,
                "peak_bytes": None if arm.result is None else arm.result.peak_bytes,
                "reason": arm.reason,
            }
            for arm in baselines
        ],
    }


def _report(profile: Profile, plan: Plan, baselines: tuple[ArmResult, ...]) -> str:
    origin = profile.origin
    lines = [
        f"model: {profile.model}",
        f"times: {origin.source}, {origin.hardware}{f' ({origin.note})' if origin.note else ''}",
        f"planner {plan.planner}, budget {in_mib(plan.budget_bytes)} a rank, "
        f"{plan.layout.microbatches} microbatches, layers {layout_text(plan.layout.split)}",
        *([f"{plan.planner}: {plan.note}"] if plan.note else []),
        "",
    ]
    rows = []
    for stage in plan.stages:
        facts, predicted = stage_facts(profile, plan, stage.stage), stage.predicted
        rows.append(
            [
                str(stage.stage),
                str(len(stage.layers)),
                in_ms(predicted.forward_us + predicted.backward_us),
                in_ms(facts.hidden_us),
                in_ms(facts.exposed_us),
                in_mib(predicted.memory.total_bytes),
                in_mib(facts.slack_bytes),
                in_mib(stage.prefetch_cap_bytes),
            ]
        )
    header = ["stage", "layers", "passes", "hidden", "exposed", "memory", "left", "ahead"]
    lines += [table(header, rows), ""]
    for stage in plan.stages:
        lines += [f"stage {stage.stage}, {line}" for line in layer_lines(stage.layers)]
        lines += [f"  {line}" for line in _window_lines(profile, plan, stage.stage)]
    lines += ["", "predicted iteration (simulated):", _times_table(plan, baselines)]
    return "\n".join([*lines, ""])


def _window_lines(profile: Profile, plan: Plan, stage: int) -> list[str]:
    """Fill of the stage's windows by kind: forward, pipeline, backward."""
    names = {
        "F": "tensor-parallel waits of forward passes",
        "P": "waits for other stages",
        "B": "waits of backward passes",
    }
    sums: dict[str, list[float]] = {}
    for name, length_us, filled_us in stage_facts(profile, plan, stage).windows:
        entry = sums.setdefault(name[0], [0.0, 0.0, 0.0])
        for place, value in enumerate((1.0, length_us, filled_us)):
            entry[place] += value
    lines = []
    for letter, (count, length_us, filled_us) in sums.items():
        if filled_us or length_us:
            length = f" of {in_ms(length_us)}" if length_us else ""
            lines.append(f"{names[letter]}: {count:g}, {in_ms(filled_us)}{length} filled per microbatch")
    return lines


def _times_table(plan: Plan, baselines: tuple[ArmResult, ...]) -> str:
    ours_us = plan.predicted_iteration_us
    rows = [[plan.planner, in_ms(ours_us), "1.000", ""]]
    for arm in baselines:
        if arm.result is None:
            rows.append([arm.name, "does not fit" if arm.is_short else "no plan", "", ""])
        else:
            time_us = arm.result.iteration_us
            rows.append([arm.name, in_ms(time_us), f"{time_us / ours_us:.3f}", in_mib(arm.result.peak_bytes)])
    reasons = [f"no plan by {arm.name}: {arm.reason}" for arm in baselines if arm.result is None and not arm.is_short]
    return "\n".join([table(["planner", "iteration", "times ours", "peak"], rows), *reasons])


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
