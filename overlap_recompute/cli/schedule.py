"""`overlap-recompute schedule`: the pipeline schedule of a layout as a picture, as lists, as CSV or as JSON."""

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.parser import one_of, refuse_idle, value_of, whole_number
from overlap_recompute.cli.schedule_texts import DESCRIPTION, EPILOG, FLAGS
from overlap_recompute.cli.tables import table
from overlap_recompute.plan.actions import COMPUTE, Grid, Kind, format_actions
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.schedules import (
    Costs,
    Phase,
    PipelineShape,
    RecomputeAhead,
    Timeline,
    draw_timeline,
    in_flight_microbatches,
    pipeline_schedule,
    read_csv,
    shape_of,
    timeline,
    validate,
    with_communication,
    with_recompute,
    write_csv,
)

ALL, ON_DEMAND = "all", "on-demand"
ORDERS = ("only", "all")
SIZES = ("--pp", "--vpp", "--microbatches", "--group-size")
MOST_PASSES = 20_000
MOST_CELLS = 1_000_000
"""Of the picture: ranks times slots."""
MOST_SLOTS = 1000
"""Of one action in the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Schedule:
    """What the flags ask for."""

    grid: Grid
    shape: PipelineShape
    title: str
    costs: Costs
    timeline: Timeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; values stay text until they are checked in the house form."""
    for flag, keywords in FLAGS.items():
        parser.add_argument(flag, **keywords)


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Build or read the schedule, check it, and write what was asked for."""
    if options.order is not None:
        one_of("--order", options.order, ORDERS)
    width = whole_number("--width", options.width, 40) if options.width else shutil.get_terminal_size((120, 24)).columns
    schedule = _schedule(options)
    if options.csv:
        write_csv(Path(options.csv), schedule.grid)
    if options.json:
        out.write(json.dumps(_as_json(schedule), indent=2) + "\n")
    elif options.order:
        out.write(_lists(schedule.grid, options.order))
    else:
        out.write(_report(schedule, width))
    if options.csv and not options.json:
        out.write(f"wrote {options.csv}\n")
    return 0


def _schedule(options: argparse.Namespace) -> _Schedule:
    grid, title = _read(options) if options.from_csv else _build(options)
    recompute = bool(options.recompute) or any(action.kind is Kind.R for row in grid for action in row)
    if not recompute:
        refuse_idle(options, ("--recompute-ahead", "--recompute-slots"), "and no recompute", "it with recompute")
    costs = _costs(options, recompute)
    return _Schedule(grid=grid, shape=shape_of(grid), title=title, costs=costs, timeline=timeline(grid, costs))


def _read(options: argparse.Namespace) -> tuple[Grid, str]:
    given = [flag for flag in (*SIZES, "--recompute", "--recompute-ahead") if value_of(options, flag) is not None]
    given += ["--forward-only"] * options.forward_only
    if given:
        raise ConfigError(f"--from-csv with {given[0]}", "a file or a layout", f"remove {given[0]} or --from-csv")
    grid = validate(read_csv(Path(options.from_csv)))
    return grid, f"schedule of {options.from_csv}"


def _build(options: argparse.Namespace) -> tuple[Grid, str]:
    missing = [flag for flag in ("--pp", "--microbatches") if value_of(options, flag) is None]
    if missing:
        raise ConfigError(f"no {' and no '.join(missing)}", "the size of a pipeline, or --from-csv", "add the flags")
    pp = whole_number("--pp", options.pp, 1)
    vpp = whole_number("--vpp", options.vpp or "1", 1)
    microbatches = whole_number("--microbatches", options.microbatches, 1)
    if pp * vpp * microbatches > MOST_PASSES:
        raise ConfigError(
            f"--pp {pp}, --vpp {vpp} and --microbatches {microbatches}: {pp * vpp * microbatches} forward passes",
            f"at most {MOST_PASSES}, which is more than anybody reads",
            "choose fewer microbatches: the steady state repeats itself",
        )
    group = None if options.group_size is None else whole_number("--group-size", options.group_size, 1)
    passes = pipeline_schedule(pp, vpp, microbatches, group_size=group, forward_only=options.forward_only)
    grid = with_communication(passes)
    choice = _recompute(options)
    if choice is not None:
        grid = with_recompute(grid, choice)
    kind = f"interleaved 1F1B, {vpp} model chunks on each rank, groups of {group or pp}" if vpp > 1 else "1F1B"
    title = f"{kind}: {pp} rank(s), {microbatches} microbatch(es){', forward only' if options.forward_only else ''}"
    return validate(grid, shape=PipelineShape(ranks=pp, chunks=vpp, microbatches=microbatches)), title


def _recompute(options: argparse.Namespace) -> RecomputeAhead | None:
    """Which waits to fill; None: no recompute, or all of it on demand."""
    depth = whole_number("--recompute-ahead", options.recompute_ahead or "1", 1)
    names = [phase.value for phase in Phase]
    words = options.recompute.split(",") if options.recompute else []
    for word in words:
        one_of("--recompute", word, (*names, ALL, ON_DEMAND))
    if ON_DEMAND in words and len(words) > 1:
        raise ConfigError(f"--recompute {options.recompute}", f"{ON_DEMAND} by itself", "choose one of the two")
    if not words or words == [ON_DEMAND]:
        return None
    chosen = frozenset(Phase) if ALL in words else frozenset(map(Phase, words))
    return RecomputeAhead(phases=chosen, microbatches=depth)


def _costs(options: argparse.Namespace, recompute: bool) -> Costs:
    forward = whole_number("--forward-slots", options.forward_slots, 1, MOST_SLOTS)
    again = whole_number("--recompute-slots", options.recompute_slots or str(forward), 0, MOST_SLOTS)
    return Costs(
        forward_slots=forward,
        backward_slots=whole_number("--backward-slots", options.backward_slots, 1, MOST_SLOTS),
        recompute_slots=again if recompute else 0,
        transfer_slots=whole_number("--transfer-slots", options.transfer_slots, 0, MOST_SLOTS),
    )


def _lists(grid: Grid, order: str) -> str:
    kinds = {*COMPUTE, Kind.R} if order == "only" else set(Kind)
    rows = [format_actions(action for action in row if action.kind in kinds) for row in grid]
    return "".join(f"rank {rank}: {row}\n" for rank, row in enumerate(rows))


def _report(schedule: _Schedule, width: int) -> str:
    costs, times = schedule.costs, schedule.timeline
    if times.length_slots * len(schedule.grid) > MOST_CELLS:
        raise ConfigError(
            f"a picture of {len(schedule.grid)} ranks times {times.length_slots} slots",
            f"at most {MOST_CELLS} cells",
            "choose fewer ranks, microbatches or slots, or --order or --json, which draw nothing",
        )
    lengths = f"F = {costs.forward_slots}, B = {costs.backward_slots}"
    lengths += f", recompute = {costs.recompute_slots}" if costs.recompute_slots else ""
    lengths += f", transfer = {costs.transfer_slots}" if costs.transfer_slots else ""
    header = ["rank", "in flight", "by chunk", "bubble slots", *["hidden R", "exposed R"] * bool(costs.recompute_slots)]
    rows = [[str(cell) for cell in figures.values()][: len(header)] for figures in _figures(schedule)]
    total = f"{times.length_slots} slots with {lengths}; bubble {100 * times.bubble_fraction:.1f} %"
    legend = "0F3: forward pass of model chunk 0 on microbatch 3; B backward pass; = goes on; . idle"
    legend += "\n0R3: recompute ahead for 0B3, in a wait; 0R3!: exposed recompute" if costs.recompute_slots else ""
    note = "The clock is abstract: it shows the order, it does not predict times."
    drawing = draw_timeline(times, width)
    return "\n".join([schedule.title, "", drawing, "", legend, "", table(header, rows), "", total, note, ""])


def _figures(schedule: _Schedule) -> list[dict[str, Any]]:
    times = schedule.timeline
    slots = zip(times.bubble_slots, times.hidden_recompute_slots, times.exposed_recompute_slots, strict=True)
    return [
        {
            "rank": rank,
            "peak_in_flight": held.peak,
            "peak_in_flight_by_chunk": "+".join(map(str, held.peak_by_chunk)),
            "bubble_slots": bubble_slots,
            "hidden_recompute_slots": hidden_slots,
            "exposed_recompute_slots": exposed_slots,
        }
        for rank, (held, (bubble_slots, hidden_slots, exposed_slots)) in enumerate(
            zip(map(in_flight_microbatches, schedule.grid), slots, strict=True)
        )
    ]


def _as_json(schedule: _Schedule) -> dict[str, Any]:
    ranks = [
        {
            **figures,
            "peak_in_flight_by_chunk": in_flight_microbatches(row).peak_by_chunk,
            "actions": [str(action) for action in row],
        }
        for figures, row in zip(_figures(schedule), schedule.grid, strict=True)
    ]
    times = schedule.timeline
    return {
        "schema": "schedule/1",
        **asdict(schedule.shape),
        "costs": asdict(schedule.costs),
        "length_slots": times.length_slots,
        "bubble_fraction": times.bubble_fraction,
        "by_rank": ranks,
    }


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
