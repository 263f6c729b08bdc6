"""Whether the parts of a measured profile add up to an iteration, and what measuring costs.

For each case two runs of the trainer take turns: one that measures a profile, one that does not. The sum of the
profile's parts - forward and backward pass of every layer, embedding and head times microbatches, and the update - is
compared with the median iteration of the run without marks. Ranks have a core each; the link is emulated.

    .venv/bin/python benchmarks/profile_closure.py --output benchmarks/profile_closure.md
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
from datetime import date

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from overlap_recompute.plan.profile import COMPUTE, Pass, Profile  # noqa: E402
from overlap_recompute.plan.validation import read_profile  # noqa: E402
from tests.distributed.launch import run_ranks  # noqa: E402

COMMON = (
    "--distributed-backend gloo --num-layers 4 --hidden-size 256 --num-attention-heads 4 --seq-length 128 "
    "--micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --mock-data --vocab-size 511 --num-workers 0 --eval-iters 0 "
    "--log-interval 1 --attention-dropout 0 --hidden-dropout 0"
)
CASES = {
    "1 rank": (1, ""),
    "TP=2, emulated link of 0.4 Gbit/s": (2, "--tensor-model-parallel-size 2 --emulate-link-gbps 0.4"),
    "TP=2 with sequence parallelism, the same link": (
        2,
        "--tensor-model-parallel-size 2 --sequence-parallel --emulate-link-gbps 0.4",
    ),
}
SKIPPED = 2
"""First iterations that do not count."""


def iterations_ms(folder: pathlib.Path, ranks: int, flags: str, iterations: int, profile: pathlib.Path | None) -> list:
    """Milliseconds of every counted iteration of one run."""
    metrics = folder / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    command = [
        sys.executable, str(ROOT / "pretrain_gpt.py"), *COMMON.split(), *flags.split(), "--metrics-file", str(metrics),
        "--train-iters", str(SKIPPED + iterations),
    ]  # fmt: skip
    if profile is not None:
        command += [
            "--overlap-recompute-profile", str(profile), "--overlap-recompute-profile-warmup", str(SKIPPED),
            "--overlap-recompute-profile-iterations", str(iterations),
        ]  # fmt: skip
    results = run_ranks(command, ranks, timeout_s=200)
    if any(result.returncode for result in results):
        raise SystemExit("\n".join(result.output[-2000:] for result in results))
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [record["elapsed_ms"] for record in records if record["kind"] == "iteration"][SKIPPED:]


def parts_ms(profile: Profile) -> dict[str, float]:
    """Milliseconds of an iteration by part."""
    kinds = [profile.kind_of(layer) for layer in range(len(profile.layers))]
    ends = (profile.embedding, profile.head)
    count = profile.layout.microbatches / 1e3

    def spent(passes: list[Pass], *, windows: bool) -> float:
        return count * sum(s.duration_us for steps in passes for s in steps if (s.kind != COMPUTE) == windows)

    forward = [part.forward for part in (*kinds, *ends)]
    backward = [part.backward for part in (*kinds, *ends)]
    return {
        "forward": spent(forward, windows=False),
        "backward": spent(backward, windows=False),
        "windows": spent([*forward, *backward], windows=True),
        "update": profile.update_us / 1e3,
    }


def measure(rounds: int, iterations: int) -> list[dict]:
    """One row for each case."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for case, (ranks, flags) in CASES.items():
            plain: list[float] = []
            marked: list[float] = []
            parts: list[dict[str, float]] = []
            for _ in range(rounds):
                plain += iterations_ms(folder, ranks, flags, iterations, None)
                marked += iterations_ms(folder, ranks, flags, iterations, folder / "profile.json")
                parts.append(parts_ms(read_profile(folder / "profile.json")))
            found = {part: statistics.mean(entry[part] for entry in parts) for part in parts[0]}
            total_ms = sum(found.values())
            plain_ms = statistics.median(plain)
            rows.append(
                {
                    "case": case,
                    **found,
                    "sum": total_ms,
                    "iteration": plain_ms,
                    "with marks": statistics.median(marked),
                    "sum / iteration": total_ms / plain_ms,
                }
            )
    return rows


def page(rows: list[dict], options: argparse.Namespace) -> str:
    """The result as Markdown."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [row["case"], *(f"{row[name]:.3f}" if "/" in name else f"{row[name]:.1f}" for name in names[1:])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(
        [
            "# A profile adds up to an iteration",
            "",
            (__doc__ or "").split("\n\n")[1].replace("\n", " "),
            "",
            *lines,
            "",
            f"Milliseconds of an iteration; medians of {options.rounds} x {options.iterations} iterations. "
            f"{date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
            "",
            f"Command: `benchmarks/profile_closure.py --rounds {options.rounds} --iterations {options.iterations}`",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    text = page(measure(options.rounds, options.iterations), options)
    print(text)
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
