"""What the trainer costs over a bare loop on stock Megatron-Core.

Two arms take turns in one process, on one model and one optimizer: `trainer` runs `Trainer.iterate` (data loader, step,
learning-rate schedule, log line, metrics file, stop conditions); `bare` calls the stock schedule and the optimizer on
batches that are already in memory. The ratio of the medians is the overhead.

    .venv/bin/python benchmarks/trainer_overhead.py --rounds 60 --output benchmarks/trainer_overhead.md
"""

import argparse
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron.pretrain.config import parse_command_line, validate  # noqa: E402
from megatron.pretrain.platform import install_platform  # noqa: E402

FLAGS = (
    "--distributed-backend gloo --num-layers 4 --hidden-size 256 --num-attention-heads 4 --seq-length 128 "
    "--max-position-embeddings 128 --micro-batch-size 2 --global-batch-size 4 --train-iters 100000 --lr 1e-4 "
    "--mock-data --tokenizer-type NullTokenizer --vocab-size 1023 --log-interval 1 --eval-iters 0 --num-workers 0 "
    "--exit-signal-handler"
).split()


def build(folder: str):
    """A trainer and a function that runs one bare iteration over the same model and optimizer."""
    config = parse_command_line([*FLAGS, "--metrics-file", f"{folder}/metrics.jsonl"], os.environ)
    validate(config)
    device = install_platform(config.distributed.distributed_backend)

    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron.pretrain.training.run import open_trainer
    from megatron.pretrain.training.step import forward_step

    session = open_trainer(config, device)
    trainer = session.__enter__()
    batch = next(trainer.train_iterators[0])
    forward_backward = get_forward_backward_func()
    model, optimizer = trainer.state.model, trainer.state.optimizer

    def bare() -> None:
        for chunk in model:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        forward_backward(
            forward_step_func=forward_step, data_iterator=iter([batch] * config.num_microbatches), model=model,
            num_microbatches=config.num_microbatches, seq_length=config.model.seq_length,
            micro_batch_size=config.training.micro_batch_size, forward_only=False,
        )  # fmt: skip
        optimizer.step()

    return session, trainer.iterate, bare


def measure(iterate, bare, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every iteration, arms in turn; the order within a round alternates."""
    times_ms: dict[str, list[float]] = {"trainer": [], "bare": []}
    for turn in range(-3, rounds):
        arms = [("trainer", iterate), ("bare", bare)]
        for name, arm in arms if turn % 2 else reversed(arms):
            started_s = time.perf_counter()
            arm()
            if turn >= 0:
                times_ms[name].append((time.perf_counter() - started_s) * 1e3)
    return times_ms


def table(times_ms: dict[str, list[float]]) -> str:
    """The result as a page."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    medians = {name: statistics.median(values) for name, values in times_ms.items()}
    rows = [
        f"| {name} | {medians[name]:.2f} | {min(values):.2f} | {max(values):.2f} | {len(values)} |"
        for name, values in times_ms.items()
    ]
    return "\n".join(
        [
            "# Trainer overhead over a bare loop",
            "",
            f"Commit {commit or 'unknown'}, {date.today()}, {platform.machine()} with {os.cpu_count()} cores, "
            f"one rank, Python {platform.python_version()}. Arms alternate in one process.",
            "",
            "    .venv/bin/python benchmarks/trainer_overhead.py --output benchmarks/trainer_overhead.md",
            "",
            "| arm | median ms | min ms | max ms | iterations |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Ratio of medians, trainer / bare: **{medians['trainer'] / medians['bare']:.4f}**.",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="counted iterations of each arm (default: %(default)s)")
    parser.add_argument("--output", type=pathlib.Path, help="markdown file to write; default: standard output only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        session, iterate, bare = build(folder)
        page = table(measure(iterate, bare, options.rounds))
        session.__exit__(None, None, None)
    print(page)
    if options.output:
        options.output.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
