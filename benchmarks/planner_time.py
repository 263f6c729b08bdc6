"""How long planners take, by number of layers; draws docs/images/planner_time.png.

Counted is the solution of all stages, from problems that are built already, without simulating the finished plan.
Processor time of this process, so that other programs disturb less; opt in wall time, which limits it.

python benchmarks/planner_time.py
"""

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.planner_optimality import stage_us, transformer_stage
from overlap_recompute.planner import solve_stage
from overlap_recompute.planner.solve import Memory, Search, moves_of

STAGES = 8
SHARE, LINK_GB_PER_S = 0.3, 60.0
PICTURE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "images" / "planner_time.png"


def seconds(planner: str, layers: int, limit_s: float) -> tuple[float, float, float]:
    """Processor time for all stages of a pipeline, and for opt the largest proven gap, of exposed and of stage time."""
    problems = [
        transformer_stage(SHARE, LINK_GB_PER_S, llama=False, layers=layers, stages=STAGES, stage=stage)
        for stage in range(STAGES)
    ]
    memory, worst, of_stage = Memory(), 0.0, 0.0
    begin_s = time.process_time()
    for problem in problems:
        found = solve_stage(problem, planner, memory=memory, search=Search(limit_s=limit_s, moves=moves_of(STAGES)))
        open_us = found.exposed_us - found.bound_us
        worst = max(worst, open_us / max(found.exposed_us, 1.0))
        of_stage = max(of_stage, open_us / (stage_us(problem) + found.exposed_us))
    return time.process_time() - begin_s, worst, of_stage


def main() -> None:
    """Measure, print a table, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--opt-limit-s", type=float, default=7.5, help="for each of the 8 stages; 0: without opt")
    parser.add_argument("--no-picture", action="store_true")
    options = parser.parse_args()
    counts = (16, 32, 48, 64, 96)
    times: dict[str, list[float]] = {}
    print("| planner | " + " | ".join(f"{count} layers" for count in counts) + " |")
    print("|---|" + "---|" * len(counts))
    for planner in ("heu", "mix"):
        times[planner] = [
            statistics.median(seconds(planner, count, 1.0)[0] for _ in range(options.repeats)) for count in counts
        ]
        print(f"| `{planner}` | " + " | ".join(f"{1e3 * value:.0f} ms" for value in times[planner]) + " |", flush=True)
    if options.opt_limit_s:
        begin_s = time.perf_counter()
        _, gap, of_stage = seconds("opt", 48, options.opt_limit_s)
        spent_s = time.perf_counter() - begin_s
        print(
            f"\nopt, 48 layers, at most {options.opt_limit_s} s a stage: {spent_s:.1f} s, largest gap {gap:.1%} of the "
            f"exposed time, {of_stage:.2%} of the stage's time"
        )
    if not options.no_picture:
        draw(counts, times)


def draw(counts: tuple[int, ...], times: dict[str, list[float]]) -> None:
    """Time against layers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 3.2))
    for planner, values in times.items():
        axes.plot(counts, [1e3 * value for value in values], marker="o", label=planner)
    axes.set_xlabel(f"layers, {STAGES} stages")
    axes.set_ylabel("time of all stages, ms")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    main()
