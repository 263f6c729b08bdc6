"""How long the partition takes, and what it gains over the even split and the greedy rule.

.venv/bin/python benchmarks/partition_time.py --write
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from datetime import date

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from overlap_recompute.plan.profile import Profile  # noqa: E402
from overlap_recompute.plan.split import even_split, layout_text  # noqa: E402
from overlap_recompute.planner import make_plan  # noqa: E402
from overlap_recompute.planner.partition import greedy_split, partition  # noqa: E402
from overlap_recompute.simulator.analytic_options import profile_from_options  # noqa: E402

PAGE = ROOT / "benchmarks" / "partition_time.md"
SIZES = ((24, 4), (48, 8), (96, 16))
"""(layers, stages)."""
REPEATS = 3


def profile_of(layers: int, stages: int) -> Profile:
    """GPT layers of the 23B model on A100 over PCIe, as many as asked for."""
    profile = profile_from_options(
        model="gpt-23b", hardware="a100-80gb-pcie", tensor_parallel=8, pipeline_parallel=stages,
        microbatches=4 * stages, micro_batch=2,
    )  # fmt: skip
    layout = dataclasses.replace(profile.layout, split=even_split(layers, stages))
    return dataclasses.replace(profile, layers=(0,) * layers, layout=layout)


def row(layers: int, stages: int) -> list[str]:
    """A line of the table."""
    profile = profile_of(layers, stages)
    none, full = (make_plan(profile, name, 1 << 60) for name in ("none", "full"))
    peaks = [max(stage.predicted.memory.total_bytes for stage in plan.stages) for plan in (none, full)]
    budget_bytes = sum(peaks) // 2
    times_s = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        found = partition(profile, budget_bytes)
        times_s.append(time.perf_counter() - started_s)
    even_us = make_plan(profile, "heu", budget_bytes).predicted_iteration_us
    greedy = greedy_split(profile, budget_bytes)
    greedy_us = make_plan(profile, "heu", budget_bytes, split=greedy).predicted_iteration_us
    return [
        str(layers), str(stages), f"{statistics.median(times_s):.2f}", str(found.simulated),
        f"{even_us / found.iteration_us:.4f}", f"{greedy_us / found.iteration_us:.4f}", f"`{layout_text(found.split)}`",
    ]  # fmt: skip


def main() -> int:
    """Print the table, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page")
    options = parser.parse_args()
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    lines = [
        "# Time of the partition",
        "",
        f"Commit {commit}, {date.today()}, {platform.machine()} with {os.cpu_count()} cores; medians of {REPEATS}. "
        "Layers of the 23B model, TP=8, A100 over PCIe (analytic profile), 4 microbatches a stage, budget half way "
        "between full recompute and none; stages are priced with `heu`. Iteration times are simulated.",
        "",
        "    .venv/bin/python benchmarks/partition_time.py --write",
        "",
        "| layers | stages | seconds | splits simulated | even split / ours | greedy rule / ours | layout |",
        "|---|---|---|---|---|---|---|",
        *[f"| {' | '.join(row(*size))} |" for size in SIZES],
        "",
    ]
    if options.write:
        PAGE.write_text("\n".join(lines))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
