"""`overlap-recompute report`: one self-contained HTML page about simulated arms."""

import argparse
import datetime
import json
import shlex
import sys
from pathlib import Path
from typing import TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.compare import arms_of, as_data, progress_line
from overlap_recompute.cli.room import shortage_text
from overlap_recompute.cli.sources import add_budget_arguments, add_source_arguments, budget_of, profile_of
from overlap_recompute.plan.codec import FileError
from overlap_recompute.plan.files import write_text_file
from overlap_recompute.planner.comparison import ARMS, run_arm, run_arms
from overlap_recompute.report import Arm, Report, render

DESCRIPTION = """\
Write one HTML page: arms at one memory budget, the timeline of the best of ours as a picture, memory over time, tables,
method and limits. The page needs no other file and asks no server.
"""
EPILOG = """examples:
  overlap-recompute report profile.json --memory-gib 4 --output report.html
  overlap-recompute report --model gpt-7b --hardware a100-40gb-nvlink --tensor-parallel 4 --output report.html
"""
OURS = ("heu", "mix", "opt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_source_arguments(parser)
    add_budget_arguments(parser)
    parser.add_argument("--arms", metavar="NAME,...", default=",".join(ARMS), help="to compare; as in compare")
    parser.add_argument("--draw", metavar="NAME", help="arm whose timeline is drawn (the fastest of ours)")
    parser.add_argument("--title", metavar="TEXT", help="of the page")
    parser.add_argument("--output", metavar="FILE", type=Path, default=Path("report.html"), help="page to write")
    parser.add_argument("--json", action="store_true", help="write one JSON object about the page: arms and figures")


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Simulate and write the page."""
    names = arms_of(options.arms)
    if options.draw is not None:
        arms_of(options.draw)
    command = f"overlap-recompute {shlex.join(sys.argv[1:])}"
    profile = profile_of(options, command)
    budget_bytes = budget_of(options, profile)
    results = run_arms(profile, names, budget_bytes, progress=progress_line(out))
    fitting = [arm for arm in results if arm.plan is not None and arm.result is not None]
    if not fitting:
        short = shortage_text(profile, budget_bytes)
        raise FileError(f"no arm that fits: {short}", "at least one", "use more ranks, or more memory")
    ours = [arm for arm in fitting if arm.name.partition("+")[0] in OURS] or fitting
    fastest = min(ours, key=lambda arm: arm.result.iteration_us if arm.result is not None else 0.0)
    drawn = options.draw or fastest.name
    arms = []
    for found in fitting:
        assert found.plan is not None and found.result is not None, "only arms that fit"
        result = found.result
        if found.name == drawn:
            again = run_arm(profile, found.name, budget_bytes, found.plan.layout.split, timeline=True)
            result = again.result or result
        arms.append(Arm(name=found.name, plan=found.plan, result=result))
    if drawn not in [arm.name for arm in arms]:
        raise FileError(f"--draw {drawn}, which does not fit", "an arm that fits", "draw another arm")
    report = Report(
        title=options.title or f"{profile.model}: recompute at {budget_bytes / (1 << 30):.3g} GiB a rank",
        profile=profile,
        arms=tuple(arms),
        drawn=drawn,
        left_out=tuple((arm.name, arm.reason) for arm in results if arm.result is None),
        budget_bytes=budget_bytes,
        command=command,
        made=datetime.date.today().isoformat(),
    )
    try:
        write_text_file(options.output, render(report))
    except OSError as error:
        raise FileError(
            f"{options.output}, which cannot be written ({error})", "a folder that exists", "choose another path"
        ) from error
    if options.json:
        data = {"schema": "report/1", "output": str(options.output), "drawn": drawn}
        out.write(json.dumps({**data, "arms": [as_data(arm, None) for arm in results]}, indent=2) + "\n")
    else:
        out.write(f"wrote {options.output}\n")
    return 0


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
