"""Overlapped recompute over shaped links on one CPU machine: arms interleaved in one run, medians, ratios.

Two to four hosts are network namespaces joined by rate-limited links (tools/linklab; needs root). Every case trains the
same small GPT in several ways: without recompute (the limit), with stock Megatron-Core's full and selective recompute,
with our units dropped and recomputed on demand (fewer replays, no overlap), and overlapped. Pipelines also run early
recompute, which fills nothing but the waits for other stages, and our schedule with nothing dropped.

    .venv/bin/python benchmarks/overlap_cpu.py --write        # all cases, half an hour
    .venv/bin/python benchmarks/overlap_cpu.py --cases "TP=2 400mbit" --write   # measures one, keeps the others

`--write` puts the chosen cases into overlap_cpu.json beside those that are there, and makes page and plot from it.

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
from dataclasses import dataclass
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
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
"""glibc keeps what is freed. By default it maps large tensors anew now and then: the same step takes 11 or 19 ms."""
DEFAULT_MALLOC = "glibc's malloc as it is"
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
    ranks_per_host: int = 1
    note: str = ""
    """What a reader of the page must know about this case."""

    def all_arms(self) -> dict[str, list[str]]:
        """The arms by name; "none" comes first."""
        ours = ["--overlap-recompute", "--overlap-recompute-policy", self.policy]
        arms = {
            "none": [],
            "stock full": FULL,
            "stock selective": SELECTIVE,
            "same units, on demand": [*ours, "--overlap-recompute-serialize"],
            "overlapped": ours,
        }
        if TP2[0] in self.flags:
            arms["overlapped, weight gradients too"] = [*ours, "--overlap-recompute-delay-wgrad"]
        if PP2[0] in self.flags:
            arms["overlapped, no cap"] = [*ours, "--overlap-recompute-prefetch-mib", "4096"]
            arms["early (pp_wait only)"] = [*ours, "--overlap-recompute-windows", "pp_wait"]
            arms["our schedule, nothing dropped"] = ["--schedule-impl", "overlap"]
        return arms


CASES: dict[str, Case] = {
    "TP=2 400mbit": Case(rate="400mbit", flags=TP2),
    "TP=2 150mbit": Case(
        rate="150mbit",
        flags=TP2,
        note="Overlap hides all recompute, and then *none* is the limit. Without recompute 72 all-reduces of 1 MiB "
        "cross the link in an iteration (36 windows each way), with stock full 104: 1.44 where nothing but the wire "
        "counts, and less with what is computed, of which stock full has about a third more. Only what *none* computes "
        "on the critical path can be hidden beyond that: weight gradients of row-parallel linears, and adding them up.",
    ),
    "TP=2 1000mbit": Case(rate="1000mbit", flags=TP2),
    "TP=2 10gbit": Case(rate="10gbit", flags=TP2, note="The cores that copy are slower than this link."),
    "TP=2 SP 400mbit": Case(rate="400mbit", flags=[*TP2, "--sequence-parallel"]),
    "TP=2 Llama 400mbit": Case(rate="400mbit", flags=[*TP2, *LLAMA]),
    "PP=2 100mbit": Case(rate="100mbit", flags=PP2, policy="0:all,1:none"),
    "PP=2 400mbit": Case(rate="400mbit", flags=PP2, policy="0:all,1:none"),
    "PP=2 1000mbit": Case(rate="1000mbit", flags=PP2, policy="0:all,1:none"),
    "PP=2 x TP=2 400mbit": Case(
        rate="400mbit",
        flags=[*PP2, *TP2],
        hosts=4,
        note="Four ranks on two cores: what one rank recomputes in a wait it takes from another one's computing.",
    ),
}


def run_case(case: Case, rounds: int, iterations: int) -> dict[str, dict]:
    """Run one case in a lab of its own; returns what its last rank measured."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "result.json"
        given = json.dumps({"base": [*BASE, *case.flags], "arms": case.all_arms()})
        hosts = ["--hosts", str(case.hosts), "--ranks-per-host", str(case.ranks_per_host)]
        lab = [str(ROOT / "tools/linklab"), *hosts, "--rate", case.rate, "--pin", "--timeout-s", "1800", "--"]
        turns = ["--rounds", str(rounds), "--iterations", str(iterations)]
        ranks = [str(ROOT / "benchmarks/overlap_cpu_ranks.py"), "--case", given, *turns, "--output", str(output)]
        command = [sys.executable, *lab, sys.executable, *ranks]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | KEEPING, capture_output=True, text=True, timeout=2000, check=False
        )
        if done.returncode:
            raise SystemExit(f"the lab ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        result: dict[str, dict] = json.loads(output.read_text())
        return result


COLUMNS = {
    "hidden ms": "overlap/hidden_recompute_ms",
    "exposed ms": "overlap/exposed_recompute_ms",
    "pp_wait ms": "overlap/window_ms/pp_wait",
    "of it filled ms": "overlap/filled_ms/pp_wait",
}
"""Figures of our arms, means over ranks, that the tables show."""


def summary(result: dict[str, dict]) -> list[str]:
    """Rows of a table: median time, ratio to none, throughput against stock full, what was hidden and filled."""
    middle = {name: statistics.median(arm["times_s"]) for name, arm in result.items()}
    heads = ["arm", "s / iteration", "time / none", "throughput / stock full", *COLUMNS]
    heads += ["filled before backward", "same losses"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, arm in result.items():
        figures = arm["figures"]
        shown = [figures.get(figure) for figure in COLUMNS.values()]
        wait_ms = figures.get("overlap/gradient_wait_ms")
        cells = [
            name,
            f"{middle[name]:.3f}",
            f"{middle[name] / middle['none']:.3f}",
            f"{middle['stock full'] / middle[name]:.3f}",
            *("" if value is None else f"{value:.0f}" for value in shown),
            "" if not wait_ms else f"{figures['overlap/gradient_wait_filled_ms'] / wait_ms:.0%}",
            "yes" if arm["losses"] == result["none"]["losses"] else "NO",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def provenance(beside: str) -> dict[str, str]:
    """Where and when a case was measured."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    allocator = " ".join(f"{name}={value}" for name, value in KEEPING.items())
    return {
        "commit": commit, "date": str(date.today()), "machine": machine, "beside": beside, "allocator": allocator,
    }  # fmt: skip


def page(results: dict[str, dict]) -> str:
    """The whole page."""
    lines = [
        "# Overlapped recompute over shaped links, CPU",
        "",
        "Two ranks on two cores, one core each, unless a case says otherwise; gloo, fp32; 4 layers, h=512, s=256, b=2, "
        "4 microbatches. Links are shaped by tc (tools/linklab): a real network stack at an artificial rate. All arms "
        "of a case take turns in one run; times are medians over its iterations. Read the ratios, not the seconds. "
        "With `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647` glibc keeps what is freed and maps nothing anew: "
        "times vary less, in all arms.",
        "",
        "    .venv/bin/python benchmarks/overlap_cpu.py --write",
        "",
        "`none` is the limit. `same units, on demand` shows what fewer replays alone bring; the step from there to "
        "`overlapped` is the overlap. Milliseconds are means over ranks and steps: with the policy `0:all,1:none` only "
        "the first of two stages recomputes, and its own figures are twice those of the table. `filled before "
        "backward` is the part of the waits for gradients that was spent on recompute. In a pipeline most of the "
        "waiting is one wait, before the first backward pass; what two layers drop (the default cap) fills part of it, "
        "and `no cap` shows what more memory would buy (`--overlap-recompute-prefetch-mib`). `weight gradients too`: "
        "`--overlap-recompute-delay-wgrad`.",
        "",
        "![time of each arm over time without recompute](../docs/images/overlap_cpu.png)",
        "",
    ]
    for name, case in results.items():
        measured, arms = case["measured"], case["arms"]
        iterations = len(next(iter(arms.values()))["times_s"])
        lines += [
            f"## {name}",
            "",
            f"Policy `{CASES[name].policy}`. Commit {measured['commit']}, {measured['date']}, {measured['machine']}; "
            f"{iterations} iterations an arm; {measured.get('allocator', DEFAULT_MALLOC)}. Beside it: "
            f"{measured['beside']}. {CASES[name].note}".rstrip(),
            "",
            *summary(arms),
            "",
        ]
    return "\n".join(lines)


def draw(results: dict[str, dict]) -> None:
    """Bars of time over none, by case and arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = list(dict.fromkeys(arm for case in results.values() for arm in case["arms"]))
    figure, axes = pyplot.subplots(figsize=(11, 4.4), layout="constrained")
    width = 0.86 / len(arms)
    for number, arm in enumerate(arms):
        ratios = {
            place: statistics.median(case["arms"][arm]["times_s"]) / statistics.median(case["arms"]["none"]["times_s"])
            for place, case in enumerate(results.values())
            if arm in case["arms"]
        }
        shift = (number - len(arms) / 2 + 0.5) * width
        axes.bar([place + shift for place in ratios], list(ratios.values()), width * 0.92, label=arm)
    axes.set_xticks(range(len(results)), [name.replace(" ", "\n") for name in results])
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel("time / time without recompute")
    axes.set_ylim(0.8, 1.75)
    axes.legend(ncols=4, loc="upper center", frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PLOT, dpi=110)


def write(name: str, case: dict) -> None:
    """Put one case into the file of results, and make page and plot anew."""
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    known[name] = case
    results = {other: known[other] for other in CASES if other in known}
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))
    draw(results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each arm (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=2, help="counted iterations a turn (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the figures, the page and the plot")
    parser.add_argument(
        "--beside", default="nothing that computes", help="what else ran on the machine, for the page (%(default)s)"
    )
    options = parser.parse_args()
    for name in options.cases:
        arms = run_case(CASES[name], options.rounds, options.iterations)
        print("\n".join([f"## {name}", "", *summary(arms), ""]), flush=True)
        if options.write:
            write(name, {"measured": provenance(options.beside), "arms": arms})
    return 0


if __name__ == "__main__":
    sys.exit(main())
