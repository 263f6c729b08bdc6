"""One rank, nothing to hide recompute in: time and peak memory of recompute on demand beside stock's.

Times: every arm on its own copy of the model, taking turns in one process. Peaks: a process for each arm, which trains
a few steps. Peak memory of the process is what the kernel counted (VmHWM), with malloc as it is and with
MALLOC_MMAP_THRESHOLD_=65536, which gives back what is freed at once: the difference is memory that glibc's malloc holds
in pieces. Live tensors are the allocations and releases of torch's profiler in one more step, on top of what the step
began with.

    .venv/bin/python benchmarks/one_rank.py --write
"""

import argparse
import contextlib
import gc
import json
import os
import pathlib
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
RANKS = ROOT / "benchmarks" / "overlap_cpu_ranks.py"
PAGE = ROOT / "benchmarks" / "one_rank.md"
BYTES_PER_MIB = 1 << 20

BASE = (
    "--distributed-backend gloo --hidden-size 512 --num-attention-heads 8 --seq-length 256 "
    "--max-position-embeddings 256 --train-iters 1000 --lr 1e-4 --attention-dropout 0 --hidden-dropout 0 --mock-data "
    "--tokenizer-type NullTokenizer --vocab-size 2047 --num-workers 0 --eval-iters 0 --seed 1234"
).split()
CASES = {
    "4 layers, b=2": "--num-layers 4 --micro-batch-size 2 --global-batch-size 8",
    "12 layers, b=4": "--num-layers 12 --micro-batch-size 4 --global-batch-size 8",
}
ARMS = {
    "none": "",
    "stock full": "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    "stock selective": "--recompute-granularity selective --recompute-modules core_attn",
    "on demand": "--overlap-recompute --overlap-recompute-policy on-demand",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Memory of one arm."""

    process_bytes: int
    """Peak resident memory of the process."""
    returned_bytes: int
    """The same where malloc returns memory at once."""
    live_bytes: int
    """Most bytes of tensors that a step has on top of those it began with."""


def status_bytes(field: str) -> int:
    """A size from /proc/self/status."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(field + ":")).split()[1]) * 1024


def measure_peak(flags: list[str]) -> tuple[int, int]:
    """Train three steps in this process, and a fourth under torch's profiler: peak bytes of process and tensors."""
    import overlap_cpu_ranks as ranks
    import torch

    torch.set_num_threads(1)
    config = ranks.parse_command_line(flags, os.environ)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ranks.initialize_distributed(config, ranks.DEVICE))
        arm = ranks.build_arms(flags, {"arm": []}, stack)[0]
        overlap = stack.enter_context(ranks.open_overlap(arm.config, arm.state.model, ranks.DEVICE))
        step = ranks.TrainStep(arm.config, overlap=overlap, forward_backward=arm.schedule)
        for _ in range(3):
            step(arm.state, arm.iterators)
        process_bytes = status_bytes("VmHWM")
        gc.collect()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            step(arm.state, arm.iterators)
    held_bytes = peak_bytes = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held_bytes += event.nbytes()
            peak_bytes = max(peak_bytes, held_bytes)
    return process_bytes, peak_bytes


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def peak_of(flags: list[str]) -> Peak:
    """The peaks of one arm, from two processes."""
    found = []
    for settings in ({}, {"MALLOC_MMAP_THRESHOLD_": "65536"}):
        words = run([sys.executable, __file__, "--peak-of", " ".join(flags)], settings).split("\n")
        found.append(json.loads([word for word in words if word.startswith("[")][-1]))
    return Peak(process_bytes=found[0][0], returned_bytes=found[1][0], live_bytes=found[0][1])


def run(command: list[str], settings: dict[str, str] | None = None) -> str:
    """Run one process of this benchmark to its end; returns what it printed."""
    environment = {
        **os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **(settings or {}),
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def measure_times(base: list[str], rounds: int) -> dict[str, dict]:
    """The arms in turn, in one process."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "result.json"
        case = json.dumps({"base": base, "arms": {name: flags.split() for name, flags in ARMS.items()}})
        run(
            [sys.executable, str(RANKS), "--case", case, "--rounds", str(rounds), "--iterations", "1"]
            + ["--output", str(output)]
        )
        found: dict[str, dict] = json.loads(output.read_text())
        return found


def table(times: dict[str, dict], peaks: dict[str, Peak]) -> list[str]:
    """Rows of one case."""
    middle = {name: statistics.median(arm["times_s"]) for name, arm in times.items()}
    heads = (
        "arm", "s / step", "time / none", "peak of the process, MiB", "where malloc returns memory, MiB",
        "peak of live tensors in a step, MiB", "same losses",
    )  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, peak in peaks.items():
        same = "" if not times else "yes" if times[name]["losses"] == times["none"]["losses"] else "NO"
        time_cells = f"{middle[name]:.3f} | {middle[name] / middle['none']:.3f}" if times else "|"
        rows.append(
            f"| {name} | {time_cells} "
            f"| {peak.process_bytes / BYTES_PER_MIB:.0f} | {peak.returned_bytes / BYTES_PER_MIB:.0f} "
            f"| {peak.live_bytes / BYTES_PER_MIB:.2f} | {same} |"
        )
    return rows


def page(tables: dict[str, list[str]], rounds: int) -> str:
    """The whole page."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    lines = [
        "# Recompute on one rank, CPU",
        "",
        f"Commit {commit}, {date.today()}, {platform.machine()} with {os.cpu_count()} cores, one thread, nothing that "
        f"computes beside it; h=512, s=256, fp32. Times: medians of {rounds} interleaved steps. Peaks: a process each.",
        "",
        "    .venv/bin/python benchmarks/one_rank.py --write",
        "",
        "There is no window on one rank: `on demand` is what overlapped recompute costs where nothing can be hidden. "
        "Peaks of the process: once with malloc as it is (of one arm they differ by some 30 MiB from run to run), once "
        "with `MALLOC_MMAP_THRESHOLD_=65536`, where malloc gives back what is freed at once. Live tensors: most bytes "
        "that a step has on top of those it began with, by torch's profiler.",
        "",
    ]
    for name, rows in tables.items():
        lines += [f"## {name}", "", *rows, ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument(
        "--rounds", type=int, default=5, help="counted steps of each arm, 0 for none (default: %(default)s)"
    )
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of is not None:
        print(json.dumps(measure_peak(options.peak_of.split())))
        return 0
    tables = {}
    for name in options.cases:
        base = [*BASE, *CASES[name].split()]
        peaks = {arm: peak_of([*base, *flags.split()]) for arm, flags in ARMS.items()}
        tables[name] = table(measure_times(base, options.rounds) if options.rounds else {}, peaks)
        print("\n".join([f"## {name}", "", *tables[name], ""]), flush=True)
    if options.write:
        PAGE.write_text(page(tables, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
