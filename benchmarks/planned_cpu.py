"""Planned against every other way to recompute, at one memory budget, over shaped links: real runs, medians, ratios.

For each case the run is profiled, a budget between full recompute and none is set, every planner plans for it, and all
arms run interleaved in one process group. Then every arm runs alone and its process peak is compared with the budget:
an arm that needs more is not a choice at that budget, however fast it is.

    .venv/bin/python benchmarks/planned_cpu.py --write                           # all cases, some 15 minutes
    .venv/bin/python benchmarks/planned_cpu.py --cases "TP=2 400mbit" --write    # one, the others are kept

Needs root and iproute2 (tools/linklab), and a quiet machine.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.overlap_cpu import BASE, FULL, KEEPING, PP2, TP2  # noqa: E402
from benchmarks.simulated_real import OURS, in_lab  # noqa: E402
from overlap_recompute.plan.codec import write_record  # noqa: E402
from overlap_recompute.plan.plan_file import Plan  # noqa: E402
from overlap_recompute.plan.profile import Profile  # noqa: E402
from overlap_recompute.plan.split import layout_text  # noqa: E402
from overlap_recompute.plan.validation import read_profile  # noqa: E402
from overlap_recompute.planner import make_plan  # noqa: E402
from overlap_recompute.planner.partition import best_split  # noqa: E402

RESULT = ROOT / "benchmarks" / "planned_cpu.json"
PAGE = ROOT / "benchmarks" / "planned_cpu.md"
PLOT = ROOT / "docs" / "images" / "planned_cpu.png"
MIB = 1 << 20
SELECTIVE = {
    "stock selective core_attn": ["core_attn"],
    "stock selective layernorm": ["layernorm"],
    "stock selective core_attn layernorm": ["core_attn", "layernorm"],
}
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""For the peaks: glibc gives freed memory back at once, and so does not hold what the model no longer needs."""
PLANNED = ("checkmate", "adapipe", "heu", "mix")
OURS_BY_PLAN = "plan mix"
DEEP = "--num-layers 8 --hidden-size 256 --num-attention-heads 4".split()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A layout on a network."""

    rate_mbit: int
    flags: list[str]
    share: float = 0.25
    """Of the way from the memory of full recompute to that of none."""
    partition: bool = False
    """Whether an arm with another split runs as well."""


CASES = {
    "TP=2 400mbit": Case(rate_mbit=400, flags=TP2),
    "PP=2 400mbit": Case(rate_mbit=400, flags=PP2),
    "PP=2 100mbit": Case(rate_mbit=100, flags=PP2),
    "PP=2 VPP=2 100mbit": Case(
        rate_mbit=100, flags=[*PP2, "--num-layers-per-virtual-pipeline-stage", "1", "--global-batch-size", "16"]
    ),
    "PP=2 1000mbit, heavy head": Case(rate_mbit=1000, flags=[*PP2, *DEEP, "--vocab-size", "12287"], partition=True),
}


def flags_of(case: Case) -> list[str]:
    """The run's flags; later ones override those of the base."""
    return [*BASE, *case.flags]


def profile_of(case: Case, folder: pathlib.Path) -> Profile:
    """Profile the case."""
    path = folder / "profile.json"
    words = ["--train-iters", "8", "--overlap-recompute-profile", str(path)]
    schedule = OURS if PP2[0] in case.flags else []
    in_lab(case.rate_mbit, [sys.executable, "pretrain_gpt.py", *flags_of(case), *schedule, *words], KEEPING)
    return read_profile(path)


def budget_of(profile: Profile, share: float) -> int:
    """Bytes between full recompute and none."""
    most = 1 << 50
    none, full = (_peak_bytes(make_plan(profile, name, most)) for name in ("none", "full"))
    return int(full + (none - full) * share)


def _peak_bytes(plan: Plan) -> int:
    return max(stage.predicted.memory.total_bytes for stage in plan.stages)


def plans_of(case: Case, profile: Profile, budget_bytes: int) -> dict[str, Plan]:
    """A plan of each planner, by arm."""
    plans = {f"plan {name}": make_plan(profile, name, budget_bytes) for name in PLANNED}
    if case.partition:
        split = best_split(profile, budget_bytes)
        plans["plan mix+partition"] = make_plan(profile, "mix", budget_bytes, split=split)
    return plans


def arms_of(case: Case, plans: dict[str, Plan], folder: pathlib.Path) -> dict[str, list[str]]:
    """Flags of every arm."""
    schedule = OURS if PP2[0] in case.flags else []
    stock = {
        name: ["--recompute-granularity", "selective", "--recompute-modules", *modules]
        for name, modules in SELECTIVE.items()
    }
    arms = {"none": [], "stock full": FULL, **stock}
    for name, plan in plans.items():
        path = folder / f"{name.replace(' ', '_')}.json"
        write_record(path, plan)
        layout = ["--pipeline-model-parallel-layout", layout_text(plan.layout.split)] if "partition" in name else []
        arms[name] = [*schedule, *layout, "--overlap-recompute", "--overlap-recompute-plan", str(path)]
    return arms


def run_arms(
    case: Case, arms: dict[str, list[str]], rounds: int, iterations: int, environment: dict[str, str] | None = None
) -> dict[str, dict]:
    """What the last rank measured, and the peak of every rank."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "result.json"
        given = json.dumps({"base": flags_of(case), "arms": arms})
        turns = ["--rounds", str(rounds), "--iterations", str(iterations), "--output", str(output)]
        ranks = [sys.executable, str(ROOT / "benchmarks/overlap_cpu_ranks.py"), "--case", given, *turns]
        in_lab(case.rate_mbit, ranks, environment)
        result: dict[str, dict] = json.loads(output.read_text())
        return result


def measure(case: Case, rounds: int, iterations: int) -> dict:
    """Everything about a case."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        profile = profile_of(case, folder)
        budget_bytes = budget_of(profile, case.share)
        plans = plans_of(case, profile, budget_bytes)
        arms = arms_of(case, plans, folder)
        results = run_arms(case, arms, rounds, iterations, KEEPING)
        rows = {}
        for arm, result in results.items():
            row = {"seconds": statistics.median(result["times_s"]), "losses": result["losses"]}
            alone = run_arms(case, {arm: arms[arm]}, 1, 2, RETURNING)[arm]
            row["peak MiB"] = [peak / MIB for peak in alone["peak_rss_bytes"]]
            if arm in plans:
                row["predicted s"] = plans[arm].predicted_iteration_us / 1e6
                row["predicted MiB"] = [stage.predicted.memory.total_bytes / MIB for stage in plans[arm].stages]
                row["layers"] = layout_text(plans[arm].layout.split)
            rows[arm] = row
        return {
            "commit": commit(),
            "date": str(date.today()),
            "budget MiB": budget_bytes / MIB,
            "iterations": rounds * iterations,
            "arms": rows,
        }


def commit() -> str:
    """Of the work tree, and whether it has changes."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def table(data: dict) -> list[str]:
    """Rows of a case."""
    arms = data["arms"]
    none, full = (arms[name]["seconds"] for name in ("none", "stock full"))
    lines = [
        f"Commit {data['commit']}, {data['date']}. Budget {data['budget MiB']:.0f} MiB a rank; medians of "
        f"{data['iterations']} iterations an arm.",
        "",
        "| arm | s / iteration | time / none | rate / stock full | predicted s | predicted MiB | peak MiB | fits "
        "| losses |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in arms.items():
        cells = [
            name + (f" ({row['layers']})" if "partition" in name else ""),
            f"{row['seconds']:.3f}",
            f"{row['seconds'] / none:.3f}",
            f"{full / row['seconds']:.3f}",
            f"{row['predicted s']:.3f}" if "predicted s" in row else "",
            " ".join(f"{value:.0f}" for value in row.get("predicted MiB", [])),
            " ".join(f"{value:.0f}" for value in row.get("peak MiB", [])),
            "" if "peak MiB" not in row else "yes" if max(row["peak MiB"]) <= data["budget MiB"] else "no",
            "yes" if row["losses"] == arms["none"]["losses"] else "other split" if "partition" in name else "NO",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(results: dict) -> str:
    """The whole page."""
    lines = [
        "# Planned recompute over shaped links, CPU",
        "",
        f"{platform.machine()} with {os.cpu_count()} cores, one core per rank, gloo, fp32. Links are shaped by tc "
        "(tools/linklab). Medians of arms interleaved in one run. The budget lies a quarter of the way from the "
        "predicted memory of full recompute to that of none. Stock settings know no budget: they run whether or not "
        "they fit. Peak: resident memory of each rank's process when the arm runs alone, with "
        "MALLOC_MMAP_THRESHOLD_=131072, where glibc gives back what is freed. Times are taken with "
        "MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=2147483647, where it maps nothing anew, in all arms alike.",
        "",
        "    .venv/bin/python benchmarks/planned_cpu.py --write",
        "",
    ]
    for name, data in results.items():
        lines += [f"## {name}", "", *table(data), ""]
    return "\n".join([*lines, "![time over none](../docs/images/planned_cpu.png)", ""])


def draw(results: dict) -> None:
    """Bars of time over none by case and arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(results), figsize=(3.4 * len(results), 3.8), sharex=True, layout="constrained"
    )
    for axis, (name, data) in zip([axes] if len(results) == 1 else axes, results.items(), strict=True):
        arms = data["arms"]
        ratios = [arms[arm]["seconds"] / arms["none"]["seconds"] for arm in arms]
        colours = ["#3f8f6b" if arm.startswith("plan mix") or arm == "plan heu" else "#4c78a8" for arm in arms]
        axis.barh(range(len(arms)), ratios, color=colours)
        axis.set_yticks(range(len(arms)), arms, fontsize=7)
        axis.invert_yaxis()
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xlim(left=0.9)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("time / time without recompute", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(PLOT, dpi=110)


def main() -> int:
    """Measure the chosen cases; with --write put them beside the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each arm (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=2, help="counted iterations a turn (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write figures, page and plot")
    options = parser.parse_args()
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in options.cases:
        kept[name] = measure(CASES[name], options.rounds, options.iterations)
        print("\n".join([f"## {name}", "", *table(kept[name]), ""]), flush=True)
    results = {name: kept[name] for name in CASES if name in kept}
    if options.write:
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))
        draw(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
