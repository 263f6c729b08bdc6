"""Compares the predicted peak memory of whole processes with the measured one, on this machine's CPUs.

    python benchmarks/memory_prediction.py --output benchmarks/memory_prediction.md

For each configuration the model is counted, the memory expression is evaluated without its margin, and the trainer runs
two iterations (the optimizer's state exists from the second on). Measured is the peak resident memory of each rank
(VmHWM). The base - libraries, code that runs, loader - is that of a profile of a smaller model in the same layout.
"""

import argparse
import dataclasses
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from overlap_recompute.cli.counting import count_model
from overlap_recompute.cli.memory import memory_tables
from overlap_recompute.cli.memory_choice import choice_of
from overlap_recompute.plan.counted import CountedModel
from overlap_recompute.plan.plan_file import MemoryTable
from overlap_recompute.plan.validation import read_profile

RANK = Path(__file__).with_name("memory_prediction_rank.py")
MIB = 1 << 20
LIMIT_S = 400
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc then gives every large block back when it is freed. Left alone it raises the threshold to the largest block
that was freed, up to 32 MiB, and keeps smaller ones in a heap with gaps: some hundred MiB more, not the same twice."""
COMMON = (
    "--micro-batch-size 4 --train-iters 2 --lr 1e-4 --distributed-backend gloo --attention-dropout 0 "
    "--hidden-dropout 0 --mock-data --num-workers 0 --eval-iters 0"
)
SMALL = "--num-layers 2 --hidden-size 256 --num-attention-heads 4 --seq-length 256 --vocab-size 1000"
PROFILED = (
    "--overlap-recompute-profile {} --overlap-recompute-profile-warmup 1 --overlap-recompute-profile-iterations 2"
)
GPT = "--num-layers 8 --hidden-size 512 --num-attention-heads 8 --seq-length 512 --vocab-size 8000"
LLAMA = (
    "--num-layers 8 --hidden-size 512 --num-attention-heads 8 --seq-length 512 --vocab-size 8000 "
    "--normalization RMSNorm --swiglu --position-embedding-type rope --group-query-attention --num-query-groups 4 "
    "--disable-bias-linear --untie-embeddings-and-output-weights"
)
ON = "--overlap-recompute --overlap-recompute-policy"
TP2 = "--tensor-model-parallel-size 2"
PP2 = "--pipeline-model-parallel-size 2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table."""

    name: str
    ranks: int
    model: str
    layout: str = ""
    policy: str = ""


CASES = (
    Case(name="GPT, none", ranks=1, model=GPT),
    Case(name="GPT, all", ranks=1, model=GPT, policy=f"{ON} all"),
    Case(name="GPT, mixed", ranks=1, model=GPT, policy=f"{ON} linear_fc1+activation"),
    Case(name="Llama, none", ranks=1, model=LLAMA),
    Case(name="Llama, mixed", ranks=1, model=LLAMA, policy=f"{ON} rotary+core_attention+activation"),
    Case(name="GPT, TP 2, none", ranks=2, model=GPT, layout=TP2),
    Case(name="GPT, TP 2, all", ranks=2, model=GPT, layout=TP2, policy=f"{ON} all --overlap-recompute-prefetch-mib 8"),
    Case(name="GPT, PP 2, none", ranks=2, model=GPT, layout=f"{PP2} --global-batch-size 16"),
    Case(
        name="GPT, PP 2, mixed", ranks=2, model=GPT, layout=f"{PP2} --global-batch-size 16",
        policy=f"{ON} 0:all,1:none --overlap-recompute-prefetch-mib 8",
    ),
    Case(
        name="GPT, DP 2, distributed optimizer", ranks=2, model=GPT,
        layout="--use-distributed-optimizer --global-batch-size 8",
    ),
)  # fmt: skip


def measured_bytes(flags: Sequence[str], ranks: int, allocator: Mapping[str, str]) -> list[int]:
    """Train and return the peak of each rank; `allocator`: variables that tune malloc."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        processes = [
            subprocess.Popen(
                [sys.executable, str(RANK), folder, *flags],
                env=os.environ
                | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                | allocator,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            errors = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(process.returncode for process in processes):
            raise SystemExit("\n".join(errors)[-3000:])
        return [int(Path(folder, f"rank-{rank}").read_text(encoding="utf-8")) for rank in range(ranks)]


def flags_of(case: Case, model: str) -> list[str]:
    """The command line of a case."""
    return f"{model} {COMMON} {case.layout} {case.policy}".split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What cases share: bases and counted models."""

    details: bool
    allocator: Mapping[str, str]
    bases: dict[tuple[int, str, str], int]
    models: dict[tuple[int, str, str], CountedModel]

    def rows_of(self, case: Case) -> list[str]:
        """Measure one case; a row for each stage."""
        found = measured_bytes(flags_of(case, case.model), case.ranks, self.allocator)
        tables = self._predicted(case)
        rows = []
        for stage, terms in enumerate(tables):
            peak = found[stage * case.ranks // len(tables)]
            error = terms.total_bytes / peak - 1
            name = case.name + (f", stage {stage}" if len(tables) > 1 else "")
            rows.append(f"| {name} | {terms.total_bytes / MIB:.0f} | {peak / MIB:.0f} | {100 * error:+.1f} % |")
            if self.details:
                mib = {key: round(value / MIB, 1) for key, value in dataclasses.asdict(terms).items()}
                sys.stderr.write(f"{name}: {mib} measured {[peak // MIB for peak in found]}\n")
            sys.stderr.write(rows[-1] + "\n")
        return rows

    def _predicted(self, case: Case) -> tuple[MemoryTable, ...]:
        """The memory table of each stage, without margin."""
        plain = replace(case, policy="")
        place = (case.ranks, case.model, case.layout)
        if place not in self.bases:
            self.bases[place] = base_bytes(plain, self.allocator)
            self.models[place] = count_model(flags_of(plain, case.model), device="cpu", world_size=case.ranks)
        counted, words = self.models[place], flags_of(case, case.model)
        choice = choice_of(counted, words, None)
        return memory_tables(counted, choice, base_bytes=self.bases[place], margin_fraction=0.0)


def base_bytes(case: Case, allocator: Mapping[str, str]) -> int:
    """What a profile of a smaller model of the same kind and layout says."""
    llama = "".join(case.model.partition("--normalization")[1:])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "profile.json")
        flags = flags_of(case, f"{SMALL} {llama}") + f"{PROFILED.format(file)} --train-iters 4".split()
        measured_bytes(flags, case.ranks, allocator)
        return read_profile(file).base_bytes


def page(rows: Sequence[str]) -> str:
    """The table with its circumstances."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    return "\n".join(
        [
            "# Predicted and measured peak memory",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.strip()}, CPU, gloo, fp32, one thread a rank. Made by",
            "`python benchmarks/memory_prediction.py --output benchmarks/memory_prediction.md`.",
            "Peak resident memory of a rank in MiB after two iterations; predicted without the allocator's margin.",
            "`MALLOC_MMAP_THRESHOLD_=131072`: freed blocks go back to the system (docs/memory.md).",
            "",
            "| configuration | predicted | measured | error |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> int:
    """Run all cases, or those whose name contains a text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="page to write; standard output by default")
    parser.add_argument("--only", default="", help="cases whose names match this expression")
    parser.add_argument("--default-malloc", action="store_true", help="leave glibc's thresholds as they are")
    parser.add_argument("--details", action="store_true", help="say every term on standard error")
    options = parser.parse_args()
    allocator = {} if options.default_malloc else RETURNING
    bench = Bench(details=options.details, allocator=allocator, bases={}, models={})
    rows = [row for case in CASES if re.search(options.only, case.name) for row in bench.rows_of(case)]
    text = page(rows)
    if options.output is None:
        sys.stdout.write(text)
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
