"""The table of subcommands: name, one line for the overview, and the module to load when it is called."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A subcommand as the overview shows it."""

    name: str
    """The word after `overlap-recompute`."""
    summary: str
    """What it does, in one line."""
    module: str
    """Module whose `COMMAND` it is; loaded when the subcommand is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A subcommand that is loaded."""

    description: str
    """What `--help` says first."""
    epilog: str
    """What it says last: examples."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Declares the flags."""
    run: Callable[[argparse.Namespace, TextIO], int]
    """Does the work: flags, where to write; returns the exit status. Raises `UserError` for what the user can mend."""


COMMANDS: tuple[Entry, ...] = (
    Entry(
        name="profile",
        summary="measure what units and waits of a training run are like, with a short run",
        module="overlap_recompute.cli.profile",
    ),
    Entry(
        name="memory",
        summary="say how much memory each stage takes, term by term, without running the model",
        module="overlap_recompute.cli.memory",
    ),
    Entry(
        name="plan",
        summary="decide what each stage keeps, recomputes and where, for a memory budget",
        module="overlap_recompute.cli.plan",
    ),
    Entry(
        name="explain",
        summary="say why a plan is as it is, what binds, and what more memory would buy",
        module="overlap_recompute.cli.explain",
    ),
    Entry(
        name="validate",
        summary="check that profiles and plans can be used, and belong together",
        module="overlap_recompute.cli.validate",
    ),
    Entry(
        name="diff",
        summary="say what one plan does otherwise than another",
        module="overlap_recompute.cli.diff",
    ),
    Entry(
        name="simulate",
        summary="predict an iteration of a plan: time, hidden and exposed recompute, bubble, memory",
        module="overlap_recompute.cli.simulate",
    ),
    Entry(
        name="compare",
        summary="plan and simulate every way to recompute at one memory budget",
        module="overlap_recompute.cli.compare",
    ),
    Entry(
        name="sweep",
        summary="simulate many models, clusters, layouts and micro-batches, or what a gain depends on",
        module="overlap_recompute.cli.sweep",
    ),
    Entry(
        name="report",
        summary="write one self-contained HTML page about simulated arms",
        module="overlap_recompute.cli.report",
    ),
    Entry(
        name="schedule",
        summary="print, check and save the pipeline schedule of a layout",
        module="overlap_recompute.cli.schedule",
    ),
    Entry(
        name="watch",
        summary="watch a run: progress, recompute hidden and exposed, alarms, a page for Prometheus",
        module="overlap_recompute.cli.watch",
    ),
    Entry(
        name="doctor",
        summary="say what is installed here, what is missing, and what it would be needed for",
        module="overlap_recompute.cli.doctor",
    ),
)
