#!/usr/bin/env python3
"""The throughput study of overlapped recompute, GPT 1.3B to 23B, by simulation: benchmarks/study.md, .json and plots.

    .venv/bin/python tools/reproduce_study.py --write          # the whole matrix, some minutes on two cores
    .venv/bin/python tools/reproduce_study.py --models gpt-7b  # one model, printed

Every figure is simulated from analytic profiles (docs/hardware.md): no GPU was used. The paper (Chen et al., arXiv
2406.08756) reports up to 1.37 times the throughput of existing recomputation on its clusters.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from datetime import date

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from overlap_recompute.cli.compare import as_data  # noqa: E402
from overlap_recompute.plan.errors import ConfigError  # noqa: E402
from overlap_recompute.planner.comparison import run_arm  # noqa: E402
from overlap_recompute.simulator.analytic_options import profile_from_options  # noqa: E402
from overlap_recompute.simulator.hardware_file import hardware_from  # noqa: E402
from tools.study_page import draw, page  # noqa: E402

RESULT = ROOT / "benchmarks" / "study.json"
PAGE = ROOT / "benchmarks" / "study.md"
IMAGES = ROOT / "docs" / "images"
MODELS = ("gpt-1.3b", "gpt-4.7b", "gpt-7b", "gpt-13b", "gpt-20b", "gpt-23b")
CLUSTERS = {
    "NVLink": "a100-40gb-nvlink",
    "PCIe": "a100-40gb-pcie",
    "multi-node, 100 Gbit/s a node": "a100-40gb-nvlink/100gbit-node",
}
"""By what the table calls them. The last one spreads tensor-parallel groups over nodes, which nobody does by choice."""
LAYOUTS = ((2, 4), (4, 4), (8, 2))
"""(tensor, pipeline) parallel sizes; one data-parallel copy."""
MICRO_BATCHES = (1, 2, 4, 8)
MICROBATCHES = 32
MEMORY_SHARE = 0.94
ARMS = (
    "none", "stock-full", "selective", "full", "early", "checkmate", "adapipe", "heu", "mix", "mix+partition",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One configuration of the matrix."""

    model: str
    cluster: str
    tensor_parallel: int
    pipeline_parallel: int
    micro_batch: int


def cells(models: tuple[str, ...]) -> list[Cell]:
    """The whole matrix."""
    matrix = itertools.product(models, CLUSTERS, LAYOUTS, MICRO_BATCHES)
    return [
        Cell(model=model, cluster=cluster, tensor_parallel=tensor, pipeline_parallel=pipeline, micro_batch=micro)
        for model, cluster, (tensor, pipeline), micro in matrix
    ]


def run_cell(cell: Cell) -> list[dict]:
    """All arms of a configuration; empty where the model cannot be laid out so, or nothing fits."""
    hardware = hardware_from(_hardware_name(cell))
    try:
        profile = profile_from_options(
            model=cell.model, hardware=_hardware_name(cell), tensor_parallel=cell.tensor_parallel,
            pipeline_parallel=cell.pipeline_parallel, micro_batch=cell.micro_batch, microbatches=MICROBATCHES,
        )  # fmt: skip
    except ConfigError:
        return []
    budget_bytes = int(hardware.memory_bytes * MEMORY_SHARE)
    rows = [{**dataclasses.asdict(cell), **as_data(run_arm(profile, name, budget_bytes), hardware)} for name in ARMS]
    return rows if any(row["fits"] for row in rows) else []


def _hardware_name(cell: Cell) -> str:
    return CLUSTERS[cell.cluster]


def main() -> int:
    """Run the matrix; print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--write", action="store_true", help="write the page, its figures and plots")
    parser.add_argument("--from-json", action="store_true", help="make page and plots anew from the last figures")
    options = parser.parse_args()
    started_s = time.monotonic()
    if options.from_json:
        data = json.loads(RESULT.read_text())
    else:
        rows = _run_all(cells(tuple(options.models)), options.jobs)
        data = {
            "seconds": round(time.monotonic() - started_s),
            "date": str(date.today()),
            "commit": _commit(),
            "rows": rows,
        }
    text = page(data, MODELS, CLUSTERS)
    if options.write or options.from_json:
        RESULT.write_text(json.dumps(data, separators=(",", ":")) + "\n")
        PAGE.write_text(text)
        draw(data["rows"], MODELS, CLUSTERS, IMAGES)
    else:
        print(text)
    return 0


def _run_all(matrix: list[Cell], jobs: int) -> list[dict]:
    rows: list[dict] = []
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        for number, found in enumerate(pool.map(run_cell, matrix), 1):
            rows += found
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{number} of {len(matrix)} configurations")
    return rows


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
