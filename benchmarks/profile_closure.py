"""Whether the parts of a measured profile add up to an iteration, and what measuring costs.

Each run of the trainer measures a profile in its first iterations and then goes on as many iterations without marks.
The sum of the profile's parts - forward and backward pass of every layer, embedding and head times microbatches, and
the update - is compared with the mean iteration without marks of the same process: two processes that do the same
differ by more than that, among other things by where their memory lies. Ranks have a core each; the link is emulated.

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
"""Iterations that do not count, at the start and where marks are taken away."""


def iterations_ms(
    folder: pathlib.Path, ranks: int, flags: str, iterations: int, profile: pathlib.Path
) -> tuple[list[float], list[float]]:
    """Milliseconds of the iterations with marks of one run, which writes a profile, and of those without."""
    metrics = folder / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    command = [
        sys.executable, str(ROOT / "pretrain_gpt.py"), *COMMON.split(), *flags.split(), "--metrics-file", str(metrics),
        "--train-iters", str(SKIPPED + iterations + SKIPPED + iterations), "--overlap-recompute-profile", str(profile),
        "--overlap-recompute-profile-warmup", str(SKIPPED), "--overlap-recompute-profile-iterations", str(iterations),
    ]  # fmt: skip
    results = run_ranks(command, ranks, timeout_s=200)
    if any(result.returncode for result in results):
        raise SystemExit("\n".join(result.output[-2000:] for result in results))
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    times_ms = [record["elapsed_ms"] for record in records if record["kind"] == "iteration"]
    return times_ms[SKIPPED : SKIPPED + iterations], times_ms[-iterations:]


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
                found_ms = iterations_ms(folder, ranks, flags, iterations, folder / "profile.json")
                marked += found_ms[0]
                plain += found_ms[1]
                parts.append(parts_ms(read_profile(folder / "profile.json")))
            found = {part: statistics.mean(entry[part] for entry in parts) for part in parts[0]}
            total_ms = sum(found.values())
            plain_ms = statistics.mean(plain)
            rows.append(
                {
                    "case": case,
                    **found,
                    "sum": total_ms,
                    "iteration": plain_ms,
                    "with marks": statistics.mean(marked),
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
            f"Milliseconds of an iteration; means of {options.rounds} runs x {options.iterations} iterations. "
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
