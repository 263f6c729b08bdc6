"""`overlap-recompute sweep`: many models, clusters, layouts and micro-batches; or what a gain depends on."""

import argparse
import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from overlap_recompute.cli import sweep_sensitivity
from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.compare import ALL_ARMS, arms_of, as_data
from overlap_recompute.cli.outputs import check_outputs
from overlap_recompute.cli.parser import refuse_idle, value_of, whole_number
from overlap_recompute.cli.plan_texts import in_mib, in_ms
from overlap_recompute.cli.room import least_bytes, shortage_text
from overlap_recompute.cli.status_line import StatusLine
from overlap_recompute.cli.tables import table
from overlap_recompute.plan.device import DEVICE_SHARE, planned_bytes
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.files import save_text
from overlap_recompute.plan.presets import preset_named
from overlap_recompute.plan.profile import MOST_MICROBATCHES
from overlap_recompute.planner.sweeps import Grid, Point, count, refusal, sweep
from overlap_recompute.simulator.hardware_file import hardware_from

DESCRIPTION = f"""\
Simulate every combination of models, hardware, parallel sizes and micro-batches with every arm, and show the best of
each arm: memory that an arm frees may buy a larger micro-batch, or a smaller parallel size.
Every GPU that tensor and pipeline parallelism leave is data parallelism. A plan may use {DEVICE_SHARE:.0%} of a
device's memory. Nothing is measured: all is simulated.
With --sensitivity: where the gain over recompute on demand vanishes as links and devices change, and how wrong a
profile may be before the plan made for it loses.
"""
EPILOG = """examples:
  overlap-recompute sweep --models gpt-7b,gpt-13b --hardware a100-80gb-nvlink,a100-80gb-pcie --gpus 16 \\
      --tensor-parallel 2,4,8 --pipeline-parallel 1,2,4 --micro-batch 1,2,4 --global-batch 128
  overlap-recompute sweep --sensitivity profile.json --memory-gib 4
  overlap-recompute sweep --sensitivity --models gpt-13b --hardware a100-40gb-pcie --tensor-parallel 4 \\
      --pipeline-parallel 2 --micro-batch 4 --memory-share 0.1
"""
DEFAULTS = {
    "--gpus": "16",
    "--tensor-parallel": "1,2,4,8",
    "--pipeline-parallel": "1,2,4",
    "--micro-batch": "1,2,4",
    "--global-batch": "128",
    "--arms": "none,stock-full,full,selective,checkmate,adapipe,mix",
}
"""Of a sweep. The flags themselves have none, so that one that does nothing can be told."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--models", metavar="NAME,...", help="model presets (docs/presets.md)")
    parser.add_argument("--hardware", metavar="NAME,...", help="hardware by name or .yaml file (docs/hardware.md)")
    parser.add_argument("--gpus", metavar="N", help=f"of the job ({DEFAULTS['--gpus']})")
    for flag in ("--tensor-parallel", "--pipeline-parallel", "--micro-batch"):
        parser.add_argument(flag, metavar="N,...", help=f"sizes ({DEFAULTS[flag]})")
    batch = f"sequences of an iteration ({DEFAULTS['--global-batch']})"
    parser.add_argument("--global-batch", metavar="N", help=batch)
    parser.add_argument("--sequence", metavar="N", help="tokens of a sequence (each preset's)")
    parser.add_argument("--arms", metavar="NAME,...", help=f"of {', '.join(ALL_ARMS)} ({DEFAULTS['--arms']})")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write every point")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    sweep_sensitivity.add_arguments(parser)


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Sweep and write the best of each arm, or the table of sensitivity."""
    if options.sensitivity is not None:
        return sweep_sensitivity.run_sensitivity(options, out)
    refuse_idle(options, sweep_sensitivity.FLAGS, "without --sensitivity", "it with --sensitivity only")
    check_outputs({"--csv": options.csv})
    for flag in ("models", "hardware"):
        if getattr(options, flag) is None:
            raise ConfigError(f"no --{flag}", "at least one name", f"add --{flag}, or --sensitivity PROFILE")
    models, hardware = _words(options.models), _words(options.hardware)
    for name in models:  # before anything is simulated
        preset_named(name, flag="--models")
    for name in hardware:
        hardware_from(name)
    grid = Grid(
        models=models,
        hardware=hardware,
        gpus=whole_number("--gpus", _text(options, "--gpus"), 1),
        tensor_parallel=_numbers("--tensor-parallel", options),
        pipeline_parallel=_numbers("--pipeline-parallel", options),
        micro_batch=_numbers("--micro-batch", options),
        global_batch=whole_number("--global-batch", _text(options, "--global-batch"), 1, MOST_MICROBATCHES),
        sequence=None if options.sequence is None else whole_number("--sequence", options.sequence, 1),
        arms=arms_of(_text(options, "--arms")),
    )
    points = list(_with_progress(sweep(grid), count(grid)))
    rows = [_as_row(point) for point in points]
    if options.csv is not None:
        _write_csv(options.csv, rows)
    if options.json:
        out.write(json.dumps({"schema": "sweep/1", "points": rows}, indent=2) + "\n")
    else:
        out.write(_report(rows, points, grid))
        out.write(f"wrote {options.csv}\n" if options.csv is not None else "")
    return 0 if any(row["fits"] for row in rows) else 1


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _text(options: argparse.Namespace, flag: str) -> str:
    given = value_of(options, flag)
    return DEFAULTS[flag] if given is None else str(given)


def _numbers(flag: str, options: argparse.Namespace) -> tuple[int, ...]:
    return tuple(whole_number(flag, word, 1) for word in _words(_text(options, flag)))


def _with_progress(points: Iterable[Point], total: int) -> Iterator[Point]:
    with StatusLine() as line:
        line.show(f"0 of {total} points")
        for number, point in enumerate(points, start=1):
            line.show(f"{number} of {total} points")
            yield point


def _as_row(point: Point) -> dict[str, Any]:
    place = {field.name: getattr(point, field.name) for field in dataclasses.fields(point) if field.name != "arm"}
    return {**place, **as_data(point.arm, hardware_from(point.hardware))}


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    save_text(path, text.getvalue())


def _report(rows: list[dict[str, Any]], points: list[Point], grid: Grid) -> str:
    lines = [
        f"{grid.gpus} GPUs, {grid.global_batch} sequences an iteration; the best layout and micro-batch of each arm"
    ]
    for model in grid.models:
        for hardware in grid.hardware:
            here = [row for row in rows if (row["model"], row["hardware"]) == (model, hardware) and row["fits"]]
            # Rising, so that the fastest row of an arm is the one that stays.
            best = {row["arm"]: row for row in sorted(here, key=lambda row: row["tokens_per_s"])}
            lines += ["", f"{model} on {hardware}:", _best_table(best, grid.arms)]
            if not best:
                tried = [point for point in points if (point.model, point.hardware) == (model, hardware)]
                none = f"no layout of these sizes is one of this model: {refusal(grid, model, hardware)}"
                lines.append(_nearest(tried, grid) if tried else none)
    notes = (
        "every figure is simulated; peak: of the fullest rank; USD: of a billion tokens, all devices (docs/hardware.md)"
    )
    return "\n".join([*lines, "", notes, ""])


def _nearest(points: list[Point], grid: Grid) -> str:
    """Where nothing fits: the configuration that comes closest, and what it lacks."""
    first = {_sizes(point): point for point in reversed(points) if point.arm.name == grid.arms[0]}
    closest = min(first.values(), key=lambda point: least_bytes(point.arm.profile))
    budget_bytes = planned_bytes(hardware_from(closest.hardware).memory_bytes)
    text = shortage_text(closest.arm.profile, budget_bytes)
    return f"nothing fits; closest is {_sizes(closest)}: {text}; use more --gpus, and larger parallel sizes"


def _sizes(point: Point) -> str:
    sizes = f"{point.tensor_parallel} x {point.pipeline_parallel} x {point.data_parallel}"
    return f"{sizes} with micro-batch {point.micro_batch}"


def _best_table(best: dict[str, dict[str, Any]], arms: tuple[str, ...]) -> str:
    header = ["arm", "TP x PP x DP", "micro-batch", "iteration", "tokens/s", "MFU", "peak", "USD"]
    cells = []
    for name in arms:
        if name not in best:
            cells.append([name, "does not fit", *[""] * 6])
            continue
        row = best[name]
        sizes = f"{row['tensor_parallel']} x {row['pipeline_parallel']} x {row['data_parallel']}"
        figures = [in_ms(row["iteration_us"]), f"{row['tokens_per_s']:,.0f}", f"{row['mfu']:.1%}"]
        money = f"{row['usd_per_billion_tokens']:,.0f}"
        cells.append([name, sizes, str(row["micro_batch"]), *figures, in_mib(row["peak_bytes"]), money])
    return table(header, cells)


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
