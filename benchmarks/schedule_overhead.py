"""What our pipeline schedules cost beside Megatron-Core's, without recompute and with recompute that does nothing.

Two ranks, PP=2 over gloo on loopback, one core each. Three arms take turns on one model within one run: `stock`;
`overlap` (our action lists); `overlap, waits polled` (a thread follows each receive, and every wait is polled to its
end, as recompute ahead of need does). The order within a round is random. A step counts as long as its slower rank.

    .venv/bin/python benchmarks/schedule_overhead.py --rounds 60 --output benchmarks/schedule_overhead.md
"""

import argparse
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import time
from datetime import date

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron.pretrain.config import parse_command_line  # noqa: E402
from megatron.pretrain.platform import install_platform  # noqa: E402
from tests.distributed.launch import run_ranks  # noqa: E402

COMMON = (
    "--distributed-backend gloo --num-attention-heads 4 --micro-batch-size 1 --train-iters 100000 --lr 1e-4 "
    "--mock-data --tokenizer-type NullTokenizer --vocab-size 255 --pipeline-model-parallel-size 2 "
    "--global-batch-size 8 --attention-dropout 0 --hidden-dropout 0"
)
SMALL, LARGE = "--hidden-size 32 --seq-length 16", "--hidden-size 256 --seq-length 128"
INTERLEAVED = "--num-layers 4 --num-layers-per-virtual-pipeline-stage 1"
CASES = {
    "1F1B, tiny layers": f"{COMMON} {SMALL} --num-layers 2",
    "interleaved 1F1B, tiny layers": f"{COMMON} {SMALL} {INTERLEAVED}",
    "1F1B": f"{COMMON} {LARGE} --num-layers 4",
    "interleaved 1F1B": f"{COMMON} {LARGE} {INTERLEAVED}",
    "1F1B, emulated link of 0.1 Gbit/s": f"{COMMON} {LARGE} --num-layers 4 --emulate-link-gbps 0.1",
    "interleaved 1F1B, emulated link of 0.1 Gbit/s": f"{COMMON} {LARGE} {INTERLEAVED} --emulate-link-gbps 0.1",
}
ARMS = ("stock", "overlap", "overlap, waits polled")
WARM_UP_ROUNDS = 3


class Polling:
    """Polls every wait that may be used to its end."""

    def finish(self, pending, *, phase, ahead) -> None:
        while ahead and not pending.is_completed():
            time.sleep(0)
        pending.wait()


def run_rank(rounds: int) -> None:
    """Measure every case on this rank; rank 0 prints the milliseconds of each step as JSON."""
    rank, cores = int(os.environ["RANK"]), sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    device = install_platform("gloo")
    found = {}
    port = int(os.environ["MASTER_PORT"])
    for number, (case, flags) in enumerate(CASES.items()):
        os.environ["MASTER_PORT"] = str(port + number)
        found[case] = measure(flags, device, rounds)
    if rank == 0:
        print("RESULT " + json.dumps(found))


def measure(flags: str, device, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every counted step of each arm."""
    import torch

    from megatron.overlap.pipeline.schedule import PipelineSchedule
    from megatron.pretrain.distributed.emulated_link import emulated_link
    from megatron.pretrain.distributed.initialize import initialize_distributed
    from megatron.pretrain.model import build_transformer_config
    from megatron.pretrain.training.pipeline import open_pipeline
    from megatron.pretrain.training.run import build_state

    torch.set_num_threads(1)
    config = parse_command_line(flags.split(), os.environ)
    with initialize_distributed(config, device), emulated_link(config.distributed):
        state, _ = build_state(config, build_transformer_config(config), 256, device)
        with (
            open_pipeline(config, device) as stock,
            PipelineSchedule(device) as ours,
            PipelineSchedule(device, waits=Polling()) as filled,
        ):
            return take_turns(dict(zip(ARMS, (stock, ours, filled), strict=True)), config, state.model, rounds)


def take_turns(arms, config, model, rounds: int) -> dict[str, list[float]]:
    """One step of each arm in every round."""
    import torch

    from megatron.pretrain.training.step import forward_step

    length = config.model.seq_length
    batch = {
        "tokens": torch.randint(0, 255, (1, length)), "labels": torch.randint(0, 255, (1, length)),
        "loss_mask": torch.ones(1, length), "position_ids": torch.arange(length)[None],
    }  # fmt: skip
    times_ms: dict[str, list[float]] = {name: [] for name in arms}
    order, shuffle = list(arms), random.Random(0)
    for turn in range(-WARM_UP_ROUNDS, rounds):
        shuffle.shuffle(order)
        for name in order:
            for chunk in model:
                chunk.zero_grad_buffer()
            torch.distributed.barrier()
            begin_s = time.perf_counter()
            arms[name](
                forward_step_func=forward_step, data_iterator=[iter(lambda: batch, None) for _ in model],
                model=model, num_microbatches=config.num_microbatches, seq_length=length, micro_batch_size=1,
            )  # fmt: skip
            spent_ms = torch.tensor((time.perf_counter() - begin_s) * 1e3)
            torch.distributed.all_reduce(spent_ms, op=torch.distributed.ReduceOp.MAX)
            if turn >= 0:
                times_ms[name].append(float(spent_ms))
    return times_ms


def page(found: dict[str, dict[str, list[float]]], rounds: int) -> str:
    """The result as markdown."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = []
    for case, times_ms in found.items():
        medians = {name: statistics.median(values) for name, values in times_ms.items()}
        for name, values in times_ms.items():
            ratio = medians[name] / medians["stock"]
            paired = statistics.median(a / b for a, b in zip(values, times_ms["stock"], strict=True))
            rows.append(f"| {case} | {name} | {medians[name]:.2f} | {min(values):.2f} | {ratio:.3f} | {paired:.3f} |")
    return "\n".join(
        [
            "# Our pipeline schedules beside Megatron-Core's, recompute off",
            "",
            f"Commit {commit or 'unknown'}, {date.today()}, {platform.machine()} with {os.cpu_count()} cores, Python "
            f"{platform.python_version()}. PP=2 over gloo on loopback, one core a rank, 8 microbatches of 1; {rounds} "
            f"rounds, arms in turns within one run; a step counts as long as its slower rank. Load of the machine "
            f"afterwards (two ranks alone make 2): {os.getloadavg()[1]:.0f}.",
            "",
            "    .venv/bin/python benchmarks/schedule_overhead.py --output benchmarks/schedule_overhead.md",
            "",
            "| schedule | arm | median ms | min ms | ratio of medians | median of ratios within a round |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Tiny layers: hidden size 32, 16 tokens, where a step is bookkeeping and messages only. Else hidden size "
            "256, 128 tokens, 4 layers. `waits polled`: a thread follows each receive, and every wait that recompute "
            "could use is polled to its end. The emulated link (docs/linklab.md) needs 10.5 ms for a message of "
            "128 KiB, about as long as a pass takes: stock 1F1B waits for its sends, ours does not. Over loopback the "
            "core that computes also copies the messages, so what runs beside a pass slows it down; two runs of this "
            "page differ by up to 3 %.",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="counted steps of each arm (default: %(default)s)")
    parser.add_argument("--output", type=pathlib.Path, help="markdown file to write; default: standard output only")
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(options.rounds)
        return 0
    command = [sys.executable, __file__, "--rounds", str(options.rounds)]
    results = run_ranks(command, 2, timeout_s=1200)
    lines = [line for line in results[0].output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        print(*(result.output for result in results), sep="\n", file=sys.stderr)
        return 1
    text = page(json.loads(lines[0].removeprefix("RESULT ")), options.rounds)
    print(text)
    if options.output:
        options.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
