"""`overlap-recompute validate`: whether a profile or a plan can be used, and by what."""

import argparse
import json
from pathlib import Path
from typing import Any, TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.plan_texts import layer_lines
from overlap_recompute.plan.codec import FileError, from_data, read_data
from overlap_recompute.plan.plan_file import PLAN_VERSION, Plan
from overlap_recompute.plan.profile import PROFILE_VERSION, Profile
from overlap_recompute.plan.split import layout_text
from overlap_recompute.plan.validation import check_plan, check_plan_fits, check_profile, read_profile

DESCRIPTION = "Check profiles and plans: that they can be read, make sense, and belong to the same model."
EPILOG = """examples:
  overlap-recompute validate plan.json
  overlap-recompute validate plan.json --profile profile.json   # and that the plan was made for the profile's model
  overlap-recompute validate profile.json --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("file", nargs="+", type=Path, help="profiles or plans")
    parser.add_argument("--profile", type=Path, help="the plans must have been made for this profile's model")
    parser.add_argument("--json", action="store_true", help="write one JSON object for each file, in a list")


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Check each file; the first fault ends the command with exit status 2."""
    profile = None if options.profile is None else read_profile(options.profile)
    found = []
    for path in options.file:
        record = read_either(path)
        if profile is not None and isinstance(record, Plan):
            check_plan_fits(record, profile, str(path))
        found.append({"file": str(path), "valid": True, **_facts(record)})
    if options.json:
        out.write(json.dumps(found, indent=2) + "\n")
    else:
        for facts in found:
            out.write("".join(f"{name.replace('_', ' ')}: {value}\n" for name, value in facts.items()) + "\n")
    return 0


def read_either(path: Path) -> Profile | Plan:
    """A profile or a plan, whichever the file is.

    Raises:
        FileError: it is neither, or it makes no sense.
    """
    data = read_data(path, "profile or plan")
    names = data if isinstance(data, dict) else {}
    if "kinds" in names:
        profile = from_data(data, Profile, PROFILE_VERSION, str(path))
        check_profile(profile, str(path))
        return profile
    if "stages" in names:
        plan = from_data(data, Plan, PLAN_VERSION, str(path))
        check_plan(plan, str(path))
        return plan
    raise FileError(f"{path}, which is neither", "a profile (field kinds) or a plan (field stages)", "check the path")


def _facts(record: Profile | Plan) -> dict[str, Any]:
    layout = record.layout
    sizes = f"tensor {layout.tensor_parallel} x pipeline {layout.pipeline_parallel} x data {layout.data_parallel}"
    facts: dict[str, Any] = {
        "what": "plan" if isinstance(record, Plan) else "profile",
        "layers": layout_text(layout.split),
        "parallel": sizes,
        "model_fingerprint": record.model_fingerprint,
    }
    if isinstance(record, Profile):
        return {**facts, "model": record.model, "source": record.origin.source, "hardware": record.origin.hardware}
    return {
        **facts,
        "planner": record.planner,
        "created": record.created,
        **{f"stage_{stage.stage}": "; ".join(layer_lines(stage.layers)) for stage in record.stages},
    }


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
