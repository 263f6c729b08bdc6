"""`overlap-recompute doctor`: what is installed here, what is missing, and what it would be needed for."""

import argparse
import json
from dataclasses import asdict
from typing import TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.doctor_probes import Finding, examine

DESCRIPTION = """\
Say what of the required and optional parts is here, and what is missing and for what. Nothing is installed or changed.

The exit status is 0 when training can start, 1 when a required part is missing.
"""

EPILOG = """\
marks in front of a line:
  (none)  there
  -       not there; optional
  !       not there, and training cannot start without it
"""

READY, NOT_READY = 0, 1
MISSING_MARKS = {True: "!", False: "-"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Look, and report."""
    findings = examine()
    missing = [finding.name for finding in findings if finding.required and not finding.present]
    out.write(_as_json(findings, missing) if options.json else _as_text(findings, missing))
    return NOT_READY if missing else READY


def _as_text(findings: tuple[Finding, ...], missing: list[str]) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = [_line(finding, width) for finding in findings]
    verdict = f"training cannot start without {', '.join(missing)}" if missing else "training can start"
    return "\n".join([*lines, "", f"{verdict}.", ""])


def _line(finding: Finding, width: int) -> str:
    name = finding.name.ljust(width)
    if finding.present:
        return f"  {name}  {finding.value}"
    return f"{MISSING_MARKS[finding.required]} {name}  {finding.value}; needed for {finding.needed_for}"


def _as_json(findings: tuple[Finding, ...], missing: list[str]) -> str:
    document = {"schema": "doctor/1", "ready": not missing, "findings": [asdict(finding) for finding in findings]}
    return json.dumps(document, indent=2) + "\n"


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
