"""Overlapped recompute over shaped links on one CPU machine: arms interleaved in one run, medians, ratios.

Two to four hosts are network namespaces joined by rate-limited links (tools/linklab; needs root). Every case trains the
same small GPT in several ways: without recompute (the limit), with stock Megatron-Core's full and selective recompute,
with our units dropped and recomputed on demand (fewer replays, no overlap), and overlapped.

    .venv/bin/python benchmarks/overlap_cpu.py --write        # all cases, several minutes
    .venv/bin/python benchmarks/overlap_cpu.py --cases "TP=2 400mbit"

Times of one machine's cores behind an emulated network: read the ratios, not the seconds.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import date

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "overlap_cpu.json"
PAGE = ROOT / "benchmarks" / "overlap_cpu.md"
PLOT = ROOT / "docs" / "images" / "overlap_cpu.png"

BASE = (
    "--distributed-backend gloo --num-layers 4 --hidden-size 512 --num-attention-heads 8 --seq-length 256 "
    "--max-position-embeddings 256 --micro-batch-size 2 --global-batch-size 8 --train-iters 1000 --lr 1e-4 "
    "--attention-dropout 0 --hidden-dropout 0 --mock-data --tokenizer-type NullTokenizer --vocab-size 2047 "
    "--num-workers 0 --eval-iters 0 --seed 1234"
).split()
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1".split()
SELECTIVE = "--recompute-granularity selective --recompute-modules core_attn".split()
TP2 = "--tensor-model-parallel-size 2".split()
PP2 = "--pipeline-model-parallel-size 2".split()
LLAMA = (
    "--normalization RMSNorm --position-embedding-type rope --swiglu --disable-bias-linear "
    "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 4"
).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A layout on a network."""

    rate: str
    """Of each link and direction, as tc writes it."""
    flags: list[str]
    """Layout and model, on top of `BASE`."""
    policy: str = "all"
    """What our arms drop."""
    hosts: int = 2
    arms: dict[str, list[str]] = field(default_factory=dict)
    """Arms besides the usual ones."""

    def all_arms(self) -> dict[str, list[str]]:
        """The arms by name; "none" comes first."""
        ours = ["--overlap-recompute", "--overlap-recompute-policy", self.policy]
        return {
            "none": [],
            "stock full": FULL,
            "stock selective": SELECTIVE,
            "same units, on demand": [*ours, "--overlap-recompute-serialize"],
            "overlapped": ours,
            **self.arms,
        }


CASES = {
    "TP=2 400mbit": Case(rate="400mbit", flags=TP2),
    "TP=2 150mbit": Case(rate="150mbit", flags=TP2),
    "TP=2 1000mbit": Case(rate="1000mbit", flags=TP2),
    "TP=2 SP 400mbit": Case(rate="400mbit", flags=[*TP2, "--sequence-parallel"]),
    "TP=2 Llama 400mbit": Case(rate="400mbit", flags=[*TP2, *LLAMA]),
    "PP=2 100mbit": Case(rate="100mbit", flags=PP2, policy="0:all,1:none"),
    "PP=2 400mbit": Case(rate="400mbit", flags=PP2, policy="0:all,1:none"),
}


def run_case(case: Case, rounds: int, iterations: int) -> dict[str, dict]:
    """Run one case in a lab of its own; returns what its last rank measured."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "result.json"
        given = json.dumps({"base": [*BASE, *case.flags], "arms": case.all_arms()})
        command = [
            sys.executable, str(ROOT / "tools/linklab"), "--hosts", str(case.hosts), "--rate", case.rate, "--pin",
            "--timeout-s", "1800", "--", sys.executable, str(ROOT / "benchmarks/overlap_cpu_ranks.py"),
            "--case", given, "--rounds", str(rounds), "--iterations", str(iterations), "--output", str(output),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2000, check=False)
        if done.returncode:
            raise SystemExit(f"the lab ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        result: dict[str, dict] = json.loads(output.read_text())
        return result


def summary(result: dict[str, dict]) -> list[str]:
    """Rows of a table: median time, ratio to none, throughput against stock full, fill, bytes."""
    medians = {name: statistics.median(arm["times_s"]) for name, arm in result.items()}
    rows = [
        "| arm | s / iteration | time / none | throughput / stock full | hidden ms | exposed ms | same losses |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, arm in result.items():
        figures = arm["figures"]
        hidden, exposed = (figures.get(f"overlap/{kind}_recompute_ms") for kind in ("hidden", "exposed"))
        cells = [
            name,
            f"{medians[name]:.3f}",
            f"{medians[name] / medians['none']:.3f}",
            f"{medians['stock full'] / medians[name]:.3f}",
            "" if hidden is None else f"{hidden:.0f}",
            "" if exposed is None else f"{exposed:.0f}",
            "yes" if arm["losses"] == result["none"]["losses"] else "NO",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def page(results: dict[str, dict[str, dict]], rounds: int, iterations: int) -> str:
    """The whole page."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    lines = [
        "# Overlapped recompute over shaped links, CPU",
        "",
        f"Commit {commit}, {date.today()}, {platform.machine()} with {os.cpu_count()} cores, one core per rank, gloo, "
        "fp32; 4 layers, h=512, s=256, b=2, 4 microbatches. Links are shaped by tc (tools/linklab): a real network "
        f"stack at an artificial rate. Medians of {rounds * iterations} iterations per arm, interleaved in one run.",
        "",
        "    .venv/bin/python benchmarks/overlap_cpu.py --write",
        "",
        "`none` is the limit. `same units, on demand` shows what fewer replays alone bring; the step from there to "
        "`overlapped` is the overlap.",
        "",
    ]
    for name, result in results.items():
        lines += [f"## {name}", "", *summary(result), ""]
    return "\n".join(lines)


def draw(results: dict[str, dict[str, dict]]) -> None:
    """Bars of time over none, by case and arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = list(next(iter(results.values())))
    figure, axes = pyplot.subplots(figsize=(10, 4.2), layout="constrained")
    width = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        heights = [
            statistics.median(result[arm]["times_s"]) / statistics.median(result["none"]["times_s"])
            for result in results.values()
        ]
        places = [index + (number - len(arms) / 2 + 0.5) * width for index in range(len(results))]
        axes.bar(places, heights, width * 0.92, label=arm)
    axes.set_xticks(range(len(results)), [name.replace(" ", "\n") for name in results])
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel("time / time without recompute")
    axes.set_ylim(bottom=0.8)
    axes.legend(ncols=len(arms), loc="upper center", frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PLOT, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each arm (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=2, help="counted iterations a turn (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the table, the figures and the plot")
    options = parser.parse_args()
    results = {}
    for name in options.cases:
        results[name] = run_case(CASES[name], options.rounds, options.iterations)
        print("\n".join([f"## {name}", "", *summary(results[name]), ""]), flush=True)
    if options.write:
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results, options.rounds, options.iterations))
        draw(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
