"""Show what overlapped recompute does on this machine: a table of arms, and the two lanes of a real backward pass.

Trains a small GPT on two CPU ranks (tensor parallel 2) over an EMULATED link - transfers complete after the time that
the named rate gives - in four ways, or five with a plan, that take turns in one run. No root is needed.
`benchmarks/overlap_cpu.py` measures the same over really shaped links.

    .venv/bin/python tools/show_overlap.py --output runs/quickstart/overlap
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.overlap_cpu import BASE, FULL, TP2, summary  # noqa: E402

OVERLAPPED = ["--overlap-recompute", "--overlap-recompute-policy", "all"]


def measure(
    folder: pathlib.Path, gbps: float, latency_us: float, rounds: int, plan: pathlib.Path | None
) -> dict[str, dict]:
    """Run the arms on two ranks, with a plan if there is one; the overlapped one leaves its trace in `folder`."""
    link = ["--emulate-link-gbps", str(gbps), "--emulate-link-latency-us", str(latency_us)]
    arms = {
        "none": [],
        "stock full": FULL,
        "same units, on demand": [*OVERLAPPED, "--overlap-recompute-serialize"],
        "overlapped": [*OVERLAPPED, "--overlap-recompute-trace", str(folder / "trace")],
    }
    if plan is not None:
        arms["planned"] = ["--overlap-recompute", "--overlap-recompute-plan", str(plan.resolve())]
    output = folder / "arms.json"
    case = json.dumps({"base": [*BASE, *TP2, *link], "arms": arms})
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(ROOT / "benchmarks/overlap_cpu_ranks.py"), "--case", case,
        "--rounds", str(rounds), "--iterations", "1", "--output", str(output),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise SystemExit(f"show_overlap.py: the ranks ended with {done.returncode}:\n{done.stderr[-3000:]}")
    result: dict[str, dict] = json.loads(output.read_text())
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the trace and the picture")
    parser.add_argument("--gbps", type=float, default=0.4, help="emulated rate, Gbit/s (default: %(default)s)")
    parser.add_argument("--latency-us", type=float, default=100.0, help="emulated latency (default: %(default)s)")
    parser.add_argument("--plan", type=pathlib.Path, help="a plan to train with, as one more arm")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each arm (default: %(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    result = measure(options.output, options.gbps, options.latency_us, options.rounds, options.plan)
    link = f"an emulated link of {options.gbps:g} Gbit/s"
    print(f"Two ranks, tensor parallel 2, over {link}; medians of {options.rounds} iterations:\n")
    print("\n".join(summary(result)))
    picture = options.output / "lanes.png"
    drawn = [
        sys.executable, str(ROOT / "tools/draw_lanes.py"), str(options.output / "trace/rank-00000.json"),
        "--output", str(picture), "--title", f"one backward pass, tensor parallel 2, {link}",
    ]  # fmt: skip
    subprocess.run(drawn, check=True, timeout=120, stdout=subprocess.DEVNULL)
    print(f"\nThe two lanes of one backward pass: {picture}")
    print(f"The whole trace, for ui.perfetto.dev or chrome://tracing: {options.output / 'trace'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
