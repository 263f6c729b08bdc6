"""`overlap-recompute memory`: peak memory of every stage, term by term, without running the model."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.counting import count_model
from overlap_recompute.cli.memory_choice import Choice, choice_of
from overlap_recompute.cli.parser import one_of, whole_number
from overlap_recompute.cli.status_line import StatusLine
from overlap_recompute.cli.tables import table
from overlap_recompute.plan.counted import CountedModel, memory_profile
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.memory import MARGIN_FRACTION, stage_memory
from overlap_recompute.plan.plan_file import MEMORY_TERMS, MemoryTable
from overlap_recompute.plan.validation import read_plan
from overlap_recompute.schedules import in_flight_microbatches, pipeline_schedule

DESCRIPTION = """Say how much memory a rank of each pipeline stage takes at most, term by term, in MiB.

Builds one layer of each kind with tensors that take no memory and counts what it keeps: any model, on any machine, in
seconds. The flags behind -- are those of pretrain_gpt.py; --overlap-recompute-policy, --overlap-recompute-plan and the
stock --recompute-* flags among them say what is recomputed."""
EPILOG = """examples:
  overlap-recompute memory -- --model-preset gpt-23b --bf16 --tensor-model-parallel-size 8 \\
      --pipeline-model-parallel-size 4 --micro-batch-size 1 --global-batch-size 64 --train-iters 1 --lr 1e-4 \\
      --mock-data --vocab-size 50257
  overlap-recompute memory --plan plan.json -- ...          # what a plan keeps, with the same flags
  overlap-recompute memory --device cuda -- ...             # what the kernels of a GPU save (docs/memory.md)
"""
MIB = 1 << 20
COLUMNS = (*MEMORY_TERMS, ("total", "total_bytes"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--plan", type=Path, metavar="FILE", help="what this plan keeps, with its split into stages")
    parser.add_argument("--device", default="cpu", help="whose kernels are counted: cpu (default) or cuda")
    parser.add_argument("--world-size", default="0", metavar="N", help="ranks (the fewest that the layout takes)")
    parser.add_argument("--base-mib", default="0", metavar="X", help="process or device memory before the model (0)")
    parser.add_argument("--communication-mib", default="0", metavar="X", help="buffers of NCCL or gloo (0)")
    parser.add_argument("--json", action="store_true", help="write bytes, as JSON")
    parser.add_argument("words", nargs="*", metavar="-- FLAGS", help="flags of pretrain_gpt.py")


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Count the model, choose, add up, print."""
    device = one_of("--device", options.device, ("cpu", "cuda"))
    if not options.words:
        raise ConfigError("no flags of a run", "flags of pretrain_gpt.py behind --", "see overlap-recompute memory -h")
    world_size = whole_number("--world-size", options.world_size, 0)
    base_bytes = whole_number("--base-mib", options.base_mib, 0) * MIB
    communication_bytes = whole_number("--communication-mib", options.communication_mib, 0) * MIB
    # Read first, so that what is wrong with it is said before the model is counted; and once, since it may be a pipe.
    plan = None if options.plan is None else (options.plan, read_plan(options.plan))
    with StatusLine() as line:
        line.show("counting the model ...")
        counted = count_model(options.words, device=device, world_size=world_size)
    choice = choice_of(counted, options.words, plan)
    tables = memory_tables(counted, choice, base_bytes=base_bytes, communication_bytes=communication_bytes)
    out.write(_json(counted, choice, tables) if options.json else _text(counted, choice, tables))
    return 0


def memory_tables(
    counted: CountedModel,
    choice: Choice,
    *,
    base_bytes: int = 0,
    communication_bytes: int = 0,
    margin_fraction: float = MARGIN_FRACTION,
) -> tuple[MemoryTable, ...]:
    """Peak memory of a rank of each stage.

    Args:
        counted: the model.
        choice: what is dropped.
        base_bytes: memory before the model.
        communication_bytes: buffers of communication libraries.
        margin_fraction: of the activation terms, for the allocator.
    """
    profile = memory_profile(counted, base_bytes=base_bytes, communication_bytes=communication_bytes)
    stages, chunks = len(choice.split), len(choice.split[0])
    grid = pipeline_schedule(stages, chunks, counted.layout.microbatches)
    return tuple(
        stage_memory(
            profile,
            choice.split,
            stage,
            choice.dropped,
            in_flight_microbatches(grid[stage]).peak_by_chunk,
            prefetch_cap_bytes=choice.cap_bytes[stage],
            margin_fraction=margin_fraction,
        )
        for stage in range(stages)
    )


def _text(counted: CountedModel, choice: Choice, tables: tuple[MemoryTable, ...]) -> str:
    rows = [
        [str(stage), "+".join(map(str, choice.split[stage]))]
        + [f"{getattr(terms, field) / MIB:.0f}" for _, field in COLUMNS]
        for stage, terms in enumerate(tables)
    ]
    layout = counted.layout
    lines = [
        counted.model,
        f"tensor {layout.tensor_parallel} x pipeline {layout.pipeline_parallel} x context {layout.context_parallel} x "
        f"data {layout.data_parallel}, {layout.microbatches} microbatches of {layout.micro_batch}; {choice.text}; "
        f"kernels of {counted.device}; MiB of one rank",
        "",
        table(["stage", "layers", *(name for name, _ in COLUMNS)], rows),
    ]
    if not any(terms.base_bytes for terms in tables):
        lines += ["", "base: not known without a run (--base-mib); communication libraries: --communication-mib"]
    return "\n".join(lines) + "\n"


def _json(counted: CountedModel, choice: Choice, tables: tuple[MemoryTable, ...]) -> str:
    stages: list[dict[str, Any]] = [
        {"stage": stage, "layers": choice.split[stage], **dataclasses.asdict(terms), "total_bytes": terms.total_bytes}
        for stage, terms in enumerate(tables)
    ]
    facts = {"model": counted.model, "device": counted.device, "policy": choice.text, "stages": stages}
    return json.dumps(facts, indent=2) + "\n"


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
