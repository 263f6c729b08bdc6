"""`overlap-recompute report`: one self-contained HTML page about simulated arms, and a real run beside them."""

import argparse
import dataclasses
import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.compare import arms_of, as_data
from overlap_recompute.cli.outputs import check_outputs
from overlap_recompute.cli.parser import one_of
from overlap_recompute.cli.report_trace import RunTrace, open_trace
from overlap_recompute.cli.room import shortage_text
from overlap_recompute.cli.sources import add_budget_arguments, add_source_arguments, budget_of, profile_and_plan
from overlap_recompute.cli.status_line import StatusLine
from overlap_recompute.plan.codec import FileError
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.files import save_text
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.validation import check_plan_fits, read_plan
from overlap_recompute.planner.comparison import ARMS, ArmResult, run_arm, run_arms
from overlap_recompute.planner.infeasible import SEARCHING
from overlap_recompute.report import Arm, Report, compared, render
from overlap_recompute.simulator import simulate

DESCRIPTION = """\
Write one HTML page: arms at one memory budget, the timeline of the best of ours, or of a plan, as a picture, memory
over time, tables, method and limits; with --trace a real run of the plan beside its prediction. The page needs no other
file and asks no server.
"""
EPILOG = """examples:
  overlap-recompute report profile.json --memory-gib 4 --output report.html
  overlap-recompute report profile.json plan.json --trace runs/trace --output report.html
  overlap-recompute report --model gpt-7b --hardware a100-40gb-nvlink --tensor-parallel 4 --output report.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_source_arguments(parser)
    parser.add_argument("plan", type=Path, nargs="?", help="a plan for the profile's model, to draw among the arms")
    add_budget_arguments(parser)
    parser.add_argument("--arms", metavar="NAME,...", default=",".join(ARMS), help="to compare; as in compare")
    parser.add_argument("--draw", metavar="NAME", help="arm whose timeline is drawn (the plan, or the fastest of ours)")
    parser.add_argument(
        "--trace",
        metavar="PATH",
        type=Path,
        help="of a run of the plan: the folder with traces, or one file of joined ranks",
    )
    parser.add_argument("--title", metavar="TEXT", help="of the page")
    parser.add_argument("--output", metavar="FILE", type=Path, default=Path("report.html"), help="page to write")
    parser.add_argument("--json", action="store_true", help="write one JSON object about the page: arms and figures")


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Simulate and write the page."""
    names = arms_of(options.arms)
    if options.draw is not None:
        one_of("--draw", options.draw, names)
    check_outputs({"--output": options.output}, [options.profile, options.plan, options.trace])
    command = f"overlap-recompute {shlex.join(sys.argv[1:])}"
    profile, plan_path = profile_and_plan(options, command)
    if options.draw is not None and (plan_path or options.trace) is not None:
        found = "a plan" if plan_path is not None else "--trace"
        raise ConfigError(f"--draw and {found}", "one of the two", "leave out --draw")
    plan = None if plan_path is None else _plan(plan_path, profile)
    trace = None if options.trace is None else open_trace(options.trace, profile, plan)
    if trace is not None:
        profile, plan = trace.profile, trace.plan
    given = None if plan is None else _given(plan, profile, plan_path)
    results, budget_bytes = _arms(options, profile, names, given)
    drawn = _drawn(options, results, given, trace)
    report = Report(
        title=options.title or f"{profile.model}: recompute at {budget_bytes / (1 << 30):.3g} GiB a rank",
        profile=profile,
        arms=tuple(_page_arms(results, drawn, profile, budget_bytes)),
        drawn=drawn,
        left_out=tuple((arm.name, arm.reason) for arm in results if arm.result is None),
        budget_bytes=budget_bytes,
        command=command,
        made=datetime.date.today().isoformat(),
        measured=None if trace is None else trace.measured,
    )
    save_text(options.output, render(report))
    if options.json:
        out.write(json.dumps(_as_json(options, report, results), indent=2) + "\n")
    else:
        out.write(f"wrote {options.output}\n")
    return 0


def _plan(path: Path, profile: Profile) -> Plan:
    plan = read_plan(path)
    check_plan_fits(plan, profile, str(path))
    return plan


def _given(plan: Plan, profile: Profile, path: Path | None) -> ArmResult:
    name = plan.planner if path is None else f"{path.name} ({plan.planner})"
    return ArmResult(name=name, plan=plan, result=simulate(profile, plan, timeline=True), profile=profile)


def _arms(
    options: argparse.Namespace, profile: Profile, names: Sequence[str], given: ArmResult | None
) -> tuple[list[ArmResult], int]:
    """All arms, that which was given first, and the budget: without a flag that of the plan."""
    asked = options.memory_gib is not None or options.memory_share is not None
    if given is not None and given.plan is not None and not asked:
        budget_bytes = given.plan.budget_bytes
    else:
        budget_bytes = budget_of(options, profile)
    with StatusLine() as line:
        found = run_arms(profile, names, budget_bytes, progress=lambda name: line.show(f"planning {name}"))
    results = [*([given] if given is not None else []), *found]
    if all(arm.result is None for arm in results):
        short = shortage_text(profile, budget_bytes)
        raise FileError(f"no arm that fits: {short}", "at least one", "use more ranks, or more memory")
    return results, budget_bytes


def _drawn(
    options: argparse.Namespace, results: Sequence[ArmResult], given: ArmResult | None, trace: RunTrace | None
) -> str:
    """Name of the arm to draw."""
    fitting = [arm for arm in results if arm.result is not None]
    if given is not None:
        return given.name
    if trace is not None:
        return trace.arm_of(fitting)
    if options.draw is not None:
        if options.draw not in [arm.name for arm in fitting]:
            raise FileError(f"--draw {options.draw}, which does not fit", "an arm that fits", "draw another arm")
        return str(options.draw)
    ours = [arm for arm in fitting if arm.name.partition("+")[0] in SEARCHING] or fitting
    return min(ours, key=lambda arm: arm.result.iteration_us if arm.result is not None else 0.0).name


def _page_arms(results: Sequence[ArmResult], drawn: str, profile: Profile, budget_bytes: int) -> list[Arm]:
    arms = []
    for found in results:
        if found.plan is None or found.result is None:
            continue
        result = found.result
        if found.name == drawn and not result.spans:
            again = run_arm(profile, found.name, budget_bytes, found.plan.layout.split, timeline=True)
            result = again.result or result
        arms.append(Arm(name=found.name, plan=found.plan, result=result))
    return arms


def _as_json(options: argparse.Namespace, report: Report, results: Sequence[ArmResult]) -> dict[str, Any]:
    data: dict[str, Any] = {"schema": "report/1", "output": str(options.output), "drawn": report.drawn}
    if report.measured is not None:
        result = next(arm.result for arm in report.arms if arm.name == report.drawn)
        data["measured"] = {
            "run": dataclasses.asdict(report.measured.origin),
            "step": report.measured.number,
            "steps": report.measured.steps,
            "times": [
                {"time": what, "measured_us": found_us, "predicted_us": expected_us}
                for what, found_us, expected_us in compared(report.measured, result)
            ],
        }
    return {**data, "arms": [as_data(arm, None) for arm in results]}


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
