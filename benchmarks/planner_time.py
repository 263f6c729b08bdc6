"""How long planners take, by number of layers; draws docs/images/planner_time.png.

Counted is the solution of all stages, from problems that are built already, without simulating the finished plan.
Processor time of this process, so that other programs disturb less; opt in wall time, which limits it.

python benchmarks/planner_time.py
python benchmarks/planner_time.py --only-opt --models llama --shares 0.1 0.3 0.5
"""

import argparse
import dataclasses
import itertools
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.planner_optimality import stage_us, transformer_stage
from overlap_recompute.planner import solve_stage
from overlap_recompute.planner.anneal import moves_of
from overlap_recompute.planner.highs import SolverProcess
from overlap_recompute.planner.opt import GAP, Leftover
from overlap_recompute.planner.problem import StageProblem
from overlap_recompute.planner.progress import gap_of
from overlap_recompute.planner.solve import Memory, Search
from overlap_recompute.planner.verify import find_faults

STAGES = 8
SHARE, LINK_GB_PER_S = 0.3, 60.0
PICTURE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "images" / "planner_time.png"


def stages_of(
    layers: int, *, llama: bool = False, link: float = LINK_GB_PER_S, share: float = SHARE
) -> list[StageProblem]:
    """The problems of a pipeline, each stage with its own tight budget."""
    return [
        transformer_stage(share, link, llama=llama, layers=layers, stages=STAGES, stage=stage)
        for stage in range(STAGES)
    ]


def seconds(planner: str, layers: int) -> float:
    """Processor time for all stages of a pipeline."""
    problems, memory = stages_of(layers), Memory()
    begin_s = time.process_time()
    for problem in problems:
        solve_stage(problem, planner, memory=memory, search=Search(moves=moves_of(STAGES)))
    return time.process_time() - begin_s


def opt_row(limit_s: float, layers: int, *, llama: bool, link: float, share: float) -> str:
    """A pipeline by opt, as in a plan: stages on which mix exposes something share the time, what one leaves is added.

    Returns:
        A row of a table: stages that expose something, what they expose by mix and by opt, wall time, largest gaps.
    """
    problems, memory = stages_of(layers, llama=llama, link=link, share=share), Memory()
    search = Search(moves=moves_of(STAGES))
    begin_s = time.perf_counter()
    scouted = [solve_stage(problem, "mix", memory=memory, search=search) for problem in problems]
    exposing = [index for index, found in enumerate(scouted) if found.exposed_us > 0]
    before_us, after_us, gaps, of_stage = sum(each.exposed_us for each in scouted), 0.0, [0.0], [0.0]
    with SolverProcess() as solver:
        left_s = limit_s - (time.perf_counter() - begin_s)
        search = dataclasses.replace(search, limit_s=left_s / max(1, len(exposing)), leftover=Leftover(), solver=solver)
        for index in exposing:
            found = solve_stage(problems[index], "opt", memory=memory, search=search)
            faults = find_faults(problems[index], found)
            assert not faults, faults
            after_us += found.exposed_us
            gaps.append(gap_of(found.exposed_us, found.bound_us))
            of_stage.append((found.exposed_us - found.bound_us) / (stage_us(problems[index]) + found.exposed_us))
    spent_s = time.perf_counter() - begin_s
    return (
        f"| {'Llama' if llama else 'GPT'} | {link:.0f} | {share:.0%} | {len(exposing)} | {before_us / 1e3:.2f} "
        f"| {after_us / 1e3:.2f} | {spent_s:.0f} s | {max(gaps):.2%} | {sum(gap > GAP for gap in gaps)} "
        f"| {max(of_stage):.3%} |"
    )


def main() -> None:
    """Measure, print tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--opt-limit-s", type=float, default=60.0, help="for all 8 stages together; 0: without opt")
    parser.add_argument("--only-opt", action="store_true", help="no heu, no mix, no picture")
    parser.add_argument("--layers", type=int, default=48, help="of the pipelines for opt")
    parser.add_argument("--models", nargs="+", choices=("gpt", "llama"), default=["gpt"])
    parser.add_argument("--links", nargs="+", type=float, default=[LINK_GB_PER_S], help="GB/s")
    parser.add_argument(
        "--shares", nargs="+", type=float, default=[SHARE], help="from dropping all to dropping nothing"
    )
    parser.add_argument("--no-picture", action="store_true")
    options = parser.parse_args()
    if not options.only_opt:
        heuristics(options.repeats, picture=not options.no_picture)
    if options.opt_limit_s:
        print(
            "\n| layers | link GB/s | memory | stages that expose | `mix`, ms | `opt`, ms | time | largest gap |",
            end="",
        )
        print(f" above {GAP:.0%} | of the stage's time |\n|---|---|---|---|---|---|---|---|---|---|")
        for model, link, share in itertools.product(options.models, options.links, options.shares):
            llama = model == "llama"
            print(opt_row(options.opt_limit_s, options.layers, llama=llama, link=link, share=share), flush=True)


def heuristics(repeats: int, *, picture: bool) -> None:
    """Times of heu and mix by number of layers."""
    counts = (16, 32, 48, 64, 96)
    times: dict[str, list[float]] = {}
    print("| planner | " + " | ".join(f"{count} layers" for count in counts) + " |")
    print("|---|" + "---|" * len(counts))
    for planner in ("heu", "mix"):
        times[planner] = [statistics.median(seconds(planner, count) for _ in range(repeats)) for count in counts]
        print(f"| `{planner}` | " + " | ".join(f"{1e3 * value:.0f} ms" for value in times[planner]) + " |", flush=True)
    if picture:
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
