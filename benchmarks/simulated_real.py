"""Simulated against real: runs of the trainer over shaped links, predicted from profiles of other runs.

For each layout one run is profiled, on one rate. Every other run of it is predicted from that profile: other policies,
other rates (the profile's links scaled), other splits, more microbatches. Then all are run for real, arms of one case
interleaved, and the medians compared.

    .venv/bin/python benchmarks/simulated_real.py --write                      # everything, about half an hour
    .venv/bin/python benchmarks/simulated_real.py --layouts "TP=2" --write     # one layout, the others are kept

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

from benchmarks.overlap_cpu import BASE, LLAMA, PP2, TP2  # noqa: E402
from overlap_recompute.plan.profile import Layout, Profile  # noqa: E402
from overlap_recompute.plan.split import Split, layout_text  # noqa: E402
from overlap_recompute.plan.validation import read_profile  # noqa: E402
from overlap_recompute.planner.by_hand import plan_of_policy  # noqa: E402
from overlap_recompute.simulator import simulate  # noqa: E402
from overlap_recompute.simulator.variations import varied  # noqa: E402

RESULT = ROOT / "benchmarks" / "simulated_real.json"
PAGE = ROOT / "benchmarks" / "simulated_real.md"
PLOT = ROOT / "docs" / "images" / "simulated_real.png"
TARGET_MEDIAN, TARGET_WORST, APART = 0.05, 0.12, 0.03
OURS = ["--schedule-impl", "overlap"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One run."""

    policy: str
    """Of `--overlap-recompute-policy`."""
    split: Split | None = None
    """Layers by stage, where it is not the even one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Arms that run interleaved on one network."""

    rate_mbit: int
    arms: tuple[Arm, ...]
    microbatches: int = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A layout: what is profiled, and what is predicted from it."""

    flags: list[str]
    profile_mbit: int
    cases: tuple[Case, ...]


def arms(*policies: str) -> tuple[Arm, ...]:
    """Arms of the even split."""
    return tuple(Arm(policy=policy) for policy in policies)


SOME = "all:core_attention+activation"
UNEVEN = (Arm(policy="none", split=((3,), (1,))), Arm(policy="0:all,1:none", split=((1,), (3,))))
LAYOUTS: dict[str, Plan] = {
    "TP=2": Plan(
        flags=TP2,
        profile_mbit=300,
        cases=(
            Case(rate_mbit=400, arms=arms("none", "all", "on-demand", SOME)),
            Case(rate_mbit=200, arms=arms("none", "all", "on-demand")),
            Case(rate_mbit=400, arms=arms("none", "all"), microbatches=8),
        ),
    ),
    "TP=2 SP": Plan(
        flags=[*TP2, "--sequence-parallel"],
        profile_mbit=300,
        cases=(Case(rate_mbit=400, arms=arms("none", "all", "on-demand")),),
    ),
    "TP=2 Llama": Plan(
        flags=[*TP2, *LLAMA],
        profile_mbit=300,
        cases=(Case(rate_mbit=400, arms=arms("none", "all", "on-demand")),),
    ),
    "PP=2": Plan(
        flags=PP2,
        profile_mbit=200,
        cases=(
            Case(rate_mbit=400, arms=(*arms("none", "0:all,1:none", "on-demand"), *UNEVEN)),
            Case(rate_mbit=100, arms=arms("none", "0:all,1:none", "on-demand")),
            Case(rate_mbit=100, arms=arms("none", "0:all,1:none"), microbatches=8),
        ),
    ),
}


def take_profile(plan: Plan) -> Profile:
    """Profile a run of the layout."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "profile.json"
        words = [
            *("--train-iters", "8", "--overlap-recompute-profile", str(path)),
            *("--overlap-recompute-profile-warmup", "2", "--overlap-recompute-profile-iterations", "5"),
        ]
        flags = [word for word in BASE if word not in ("--train-iters", "1000")]
        command = [sys.executable, "pretrain_gpt.py", *flags, *plan.flags, *_schedule(plan), *words]
        in_lab(plan.profile_mbit, command)
        return read_profile(path)


def _schedule(plan: Plan) -> list[str]:
    return OURS if PP2[0] in plan.flags else []


def in_lab(rate_mbit: int, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command as one rank on each of two hosts, with more in its environment."""
    lab = [sys.executable, str(ROOT / "tools/linklab"), "--hosts", "2", "--rate", f"{rate_mbit}mbit", "--pin"]
    words = [*lab, "--timeout-s", "900", "--", *command]
    environ = {**os.environ, **(environment or {})}
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=1000, check=False)
    if done.returncode:
        raise SystemExit(f"the lab ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def run_case(plan: Plan, case: Case, rounds: int, iterations: int) -> dict[str, float]:
    """Measured seconds per iteration, by arm."""
    batch = ["--global-batch-size", str(2 * case.microbatches)]
    given = {}
    for arm in case.arms:
        recompute = ["--overlap-recompute", "--overlap-recompute-policy", arm.policy]
        uneven = [] if arm.split is None else ["--pipeline-model-parallel-layout", layout_text(arm.split)]
        given[name_of(arm)] = [*batch, *_schedule(plan), *uneven, *recompute]
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "result.json"
        # The base of all arms must have the batch of the arms: they share one data set.
        text = json.dumps({"base": [*BASE, *plan.flags, *batch], "arms": given})
        turns = ["--rounds", str(rounds), "--iterations", str(iterations), "--output", str(output)]
        ranks = [sys.executable, str(ROOT / "benchmarks/overlap_cpu_ranks.py"), "--case", text, *turns]
        in_lab(case.rate_mbit, ranks)
        measured = json.loads(output.read_text())
    return {name: statistics.median(arm["times_s"]) for name, arm in measured.items()}


def name_of(arm: Arm) -> str:
    """What a table calls an arm."""
    return arm.policy if arm.split is None else f"{arm.policy}, {layout_text(arm.split)}"


def predict(profile: Profile, plan: Plan, case: Case, arm: Arm) -> float:
    """Seconds per iteration."""
    here = varied(profile, bandwidth=case.rate_mbit / plan.profile_mbit)
    split = arm.split or profile.layout.split
    layout: Layout = dataclasses.replace(profile.layout, split=split, microbatches=case.microbatches)
    return simulate(here, plan_of_policy(here, arm.policy, layout)).iteration_us / 1e6


def measure_layout(name: str, rounds: int, iterations: int) -> list[dict]:
    """Profile a layout, predict and run all of its cases."""
    plan = LAYOUTS[name]
    profile = take_profile(plan)
    rows = []
    for case in plan.cases:
        predicted = {name_of(arm): predict(profile, plan, case, arm) for arm in case.arms}
        measured = run_case(plan, case, rounds, iterations)
        for arm, seconds in measured.items():
            error = predicted[arm] / seconds - 1
            rows.append(
                {
                    "layout": name, "profiled at": f"{plan.profile_mbit}mbit", "rate": f"{case.rate_mbit}mbit",
                    "microbatches": case.microbatches, "arm": arm, "predicted s": round(predicted[arm], 4),
                    "measured s": round(seconds, 4), "error": round(error, 4),
                }
            )  # fmt: skip
            place = f"{name} {case.rate_mbit}mbit x{case.microbatches}"
            print(f"{place} {arm}: {predicted[arm]:.3f} {seconds:.3f} {error:+.1%}", flush=True)
    return rows


def wrong_orders(rows: list[dict]) -> list[str]:
    """Pairs of arms of one case that differ by more than `APART` and are predicted the other way round."""
    found = []
    for index, one in enumerate(rows):
        for other in rows[index + 1 :]:
            same = all(one[key] == other[key] for key in ("layout", "rate", "microbatches"))
            apart = one["measured s"] / other["measured s"] - 1
            if same and abs(apart) > APART and (one["predicted s"] > other["predicted s"]) != (apart > 0):
                found.append(f"{one['layout']} {one['rate']}: {one['arm']} and {other['arm']} ({apart:+.1%})")
    return found


def page(rows: list[dict], commit: str) -> str:
    """The whole page."""
    errors = [abs(row["error"]) for row in rows]
    wrong = wrong_orders(rows)
    heads = list(rows[0])
    lines = [
        "# Simulated against real",
        "",
        f"Commit {commit}, {date.today()}, {platform.machine()} with {os.cpu_count()} cores, one core per rank, gloo, "
        "fp32; 4 layers, h=512, s=256, b=2. Links are shaped by tc (tools/linklab). Each prediction comes from the "
        "profile of another run of the layout at another rate, its links scaled. Medians of interleaved arms.",
        "",
        "    .venv/bin/python benchmarks/simulated_real.py --write",
        "",
        f"{len(rows)} runs: median error {statistics.median(errors):.1%} (target {TARGET_MEDIAN:.0%}), worst "
        f"{max(errors):.1%} (target {TARGET_WORST:.0%}). Arms that differ by more than {APART:.0%} and are predicted "
        f"in the wrong order: {len(wrong)}{': ' + '; '.join(wrong) if wrong else ''}.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for row in rows:
        cells = [f"{value:+.1%}" if name == "error" else str(value) for name, value in row.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "![predicted over measured time](../docs/images/simulated_real.png)", ""])


def draw(rows: list[dict]) -> None:
    """Predicted over measured seconds, one colour a layout."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5.6, 5.2), layout="constrained")
    for name in dict.fromkeys(row["layout"] for row in rows):
        points = [(row["measured s"], row["predicted s"]) for row in rows if row["layout"] == name]
        axis.scatter(*zip(*points, strict=True), label=name, s=22)
    ends = [0.0, max(max(row["measured s"], row["predicted s"]) for row in rows) * 1.05]
    axis.plot(ends, ends, color="black", linewidth=0.8)
    for share in (1 - TARGET_WORST, 1 + TARGET_WORST):
        axis.plot(ends, [end * share for end in ends], color="grey", linewidth=0.6, linestyle="--")
    axis.set_xlabel("measured s / iteration")
    axis.set_ylabel("predicted s / iteration")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(PLOT, dpi=110)


def main() -> int:
    """Measure the chosen layouts; with --write put them beside the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each arm (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=2, help="counted iterations a turn (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write figures, page and plot")
    options = parser.parse_args()
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in options.layouts:
        kept[name] = measure_layout(name, options.rounds, options.iterations)
    rows = [row for name in LAYOUTS for row in kept.get(name, [])]
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    if options.write:
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")
        PAGE.write_text(page(rows, commit))
        draw(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
