"""Tiers A and B on one GPU: what windows hide of the recompute, by emulated link and CUDA_DEVICE_MAX_CONNECTIONS.

Runs tools/gpu_stage_bench.py once for every pair, a process each, because CUDA reads the variable when it starts; the
pairs that matter most come first, and none is begun that would not end within `--time-limit-s`. The arm on demand is
the control without overlap. One GPU and an emulated link: not a multi-GPU measurement.

    python benchmarks/gpu_stage.py --write
    python benchmarks/gpu_stage.py --time-limit-s 300 --write    # the first ones only
    .venv/bin/python benchmarks/gpu_stage.py --toy               # on a CPU: to see that it works
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "gpu_stage_bench.py"
RESULT, PAGE = ROOT / "benchmarks" / "gpu_stage.json", ROOT / "benchmarks" / "gpu_stage.md"
CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
UNSET = "unset"
PAIRS = (
    ("paced-kernel", "1"), ("paced-kernel", "32"), ("copy-engine", "1"),
    ("copy-engine", "32"), ("paced-kernel", UNSET), ("copy-engine", UNSET),
)  # fmt: skip
"""Links (tier B, tier A) and values of the variable."""
TIERS = {"paced-kernel": "B", "copy-engine": "A"}
STAGE = (
    "--preset gpt-23b --tensor-parallel 8 --pipeline-parallel 2 --layers 6 --alpha-us 20 --gbyte-per-s 150 "
    "--iterations 5 --rounds 2"
).split()
TOY = (
    "--preset gpt-23b --device cpu --dtype fp32 --hidden-size 128 --sequence 64 --num-layers 4 --tensor-parallel 2 "
    "--pipeline-parallel 2 --vocabulary 512 --alpha-us 3000 --iterations 2 --rounds 1"
).split()
TARGET = 0.9
"""Of the recompute hidden, where the windows are longer than it."""
PAIR_LIMIT_S = 280.0
HEADS = (
    "tier, link", "connections", "none ms", "on demand", "overlapped", "stock full", "hidden", "of ms", "transfers ms",
    "recompute ms", "slows recompute", "slows transfers", "peak on demand MiB", "peak overlapped MiB", "gradients",
)  # fmt: skip
Records = dict[str, dict[str, Any]]


def run_pair(link: str, connections: str, flags: Sequence[str], limit_s: float) -> dict[str, Any]:
    """The record of one run, or `{"error": ...}`."""
    environment = {name: value for name, value in os.environ.items() if name != CONNECTIONS}
    if connections != UNSET:
        environment[CONNECTIONS] = connections
    command = [sys.executable, str(TOOL), *flags, "--link", link]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [*command, "--output", folder], env=environment, cwd=ROOT, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=limit_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {limit_s:.0f} s"}
        if done.returncode:
            sys.stderr.write(done.stderr[-4000:] + "\n")
            return {"error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
        record: dict[str, Any] = json.loads((pathlib.Path(folder) / "stage.json").read_text())
    record["taken"]["command"] = " ".join(["tools/gpu_stage_bench.py", *flags, "--link", link])
    record["options"]["output"] = None
    return record


def measure(flags: Sequence[str], limit_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records by pair, as they come."""
    end_s, longest_s = time.monotonic() + limit_s, 0.0
    for link, connections in PAIRS:
        left_s = end_s - time.monotonic()
        if left_s < longest_s:
            sys.stderr.write(f"left out for want of time: {link}, {CONNECTIONS} {connections}\n")
            continue
        begun_s = time.monotonic()
        record = run_pair(link, connections, flags, min(PAIR_LIMIT_S, left_s))
        longest_s = max(longest_s, time.monotonic() - begun_s)
        yield f"{link}, {connections}", record


def page(records: Mapping[str, dict[str, Any]]) -> str:
    """All runs as Markdown."""
    lines = ["# One stage on one GPU", ""]
    first = next((record for record in records.values() if "error" not in record), None)
    if first is None:
        return "\n".join([*lines, *(f"{name}: {found['error']}" for name, found in records.items()), ""])
    taken, stage = first["taken"], first["stage"]
    lines += [
        f"**{first['label']}**. {first['model']}; {stage['layers']} layers of stage {stage['number']}; commit "
        f"{taken['commit']}, {taken['date']}, {taken['device']}. What is real in it and what is emulated: "
        "[docs/gpu_stage_bench.md](../docs/gpu_stage_bench.md).",
        "",
        "    python benchmarks/gpu_stage.py --write",
        "",
        "Tier A moves bytes with a copy engine, tier B with a paced kernel that takes multiprocessors. Times of arms "
        "are over that of none. Hidden: of step times, (on demand - overlapped) / (on demand - none); asked for: at "
        f"least {TARGET:.0%} where windows are longer than the recompute. Slows: the factor by which recompute and "
        "transfers, all of a microbatch at a time, slow each other. Peak: the allocator's, above weights "
        "and gradients.",
        "",
        f"| {' | '.join(HEADS)} |",
        "|---" * len(HEADS) + "|",
    ]
    lines += [_row(name, record) for name, record in records.items()]
    lines.append("")
    return "\n".join(lines)


def _row(name: str, record: Mapping[str, Any]) -> str:
    link, connections = name.split(", ")
    head = [f"{TIERS[link]}, {link}", connections]
    if "error" in record:
        return f"| {' | '.join(head)} | {record['error']} |" + " |" * (len(HEADS) - 3)
    arms, hidden, alone = record["arms"], record["hidden"], record["alone"]
    none = arms.get("none")

    def over(arm: str) -> str:
        return f"{arms[arm]['step_us'] / none['step_us']:.3f}" if none and arm in arms else "-"

    def alone_ms(key: str) -> str:
        return f"{alone[key] / 1e3:.2f}" if key in alone else "-"

    def peak(arm: str) -> str:
        return f"{arms[arm]['peak_above_weights_bytes'] / 2**20:.0f}" if arm in arms else "-"

    cells = [
        *head,
        f"{none['step_us'] / 1e3:.2f}" if none else "-",
        *(over(arm) for arm in ("same units, on demand", "overlapped", "stock full")),
        f"{hidden['fraction']:.0%}" if hidden["fraction"] is not None else "-",
        f"{hidden['recompute_us'] / 1e3:.2f}" if hidden["recompute_us"] is not None else "-",
        alone_ms("communication_us"),
        alone_ms("recompute_us"),
        *(f"{alone[key]:.2f}" if alone.get(key) else "-" for key in ("recompute_slowdown", "communication_slowdown")),
        *(peak(arm) for arm in ("same units, on demand", "overlapped")),
        "same bits" if record["gradients_equal"] else "NOT EQUAL",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit-s", type=float, default=1800.0, help="for all runs together (%(default)s)")
    parser.add_argument("--write", action="store_true", help="write gpu_stage.json and gpu_stage.md")
    parser.add_argument("--toy", action="store_true", help="a small stage on a CPU; writes nothing")
    options = parser.parse_args()
    if options.toy and options.write:
        parser.error("--toy --write: a CPU's figures are no result; leave one out")
    records: Records = {}
    for name, record in measure(TOY if options.toy else STAGE, options.time_limit_s):
        records[name] = record
        if options.write:  # as they come: a run that is cut short leaves what it has
            RESULT.write_text(json.dumps(records, indent=1) + "\n")
            PAGE.write_text(page(records))
    sys.stdout.write(page(records))
    return int(any("error" in record for record in records.values()))


if __name__ == "__main__":
    sys.exit(main())
