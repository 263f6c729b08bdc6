"""One rank of benchmarks/overlap_cpu.py: every arm on its own copy of the model, taking turns in one process.

A turn attaches an arm's recompute, runs one iteration that is not counted and then the counted ones, and takes it back.
The order of the arms changes from round to round. An iteration ends when the slowest rank has ended it.
"""

import argparse
import contextlib
import json
import os
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron.pretrain.config import PretrainConfig, parse_command_line, validate  # noqa: E402
from megatron.pretrain.distributed.failure import leave, run_guarded  # noqa: E402
from megatron.pretrain.platform import install_platform  # noqa: E402

DEVICE = install_platform("gloo")

import torch  # noqa: E402

from megatron.pretrain.data.datasets import DatasetSplits, build_datasets  # noqa: E402
from megatron.pretrain.data.tokenizers import build_tokenizer, padded_vocab_size  # noqa: E402
from megatron.pretrain.distributed.emulated_link import emulated_link  # noqa: E402
from megatron.pretrain.distributed.initialize import initialize_distributed  # noqa: E402
from megatron.pretrain.model import build_transformer_config  # noqa: E402
from megatron.pretrain.training.batches import build_iterators  # noqa: E402
from megatron.pretrain.training.overlap import open_overlap  # noqa: E402
from megatron.pretrain.training.pipeline import ForwardBackward, open_pipeline  # noqa: E402
from megatron.pretrain.training.run import build_state  # noqa: E402
from megatron.pretrain.training.state import TrainingState  # noqa: E402
from megatron.pretrain.training.step import BatchIterator, TrainStep  # noqa: E402


class Waits:
    """Hands the waits of an arm's schedule, which is made once, to the recompute of its present turn."""

    def __init__(self) -> None:
        self.target: Any = None

    def finish(self, pending: Any, **place: Any) -> None:
        """As `megatron.overlap.pipeline.waits.PipelineWaits`."""
        self.target.finish(pending, **place)


@dataclass(slots=True, kw_only=True)
class Arm:
    """One way to train, with its own model, optimizer, schedule and place in the data."""

    name: str
    config: PretrainConfig
    state: TrainingState
    iterators: list[BatchIterator | None]
    waits: Waits
    schedule: ForwardBackward
    times_s: list[float]
    losses: list[float]
    figures: list[dict[str, float]]


def build_arm(
    name: str, config: PretrainConfig, vocab_size: int, splits: DatasetSplits, stack: contextlib.ExitStack
) -> Arm:
    """Build one arm; its schedule stays open as long as `stack`."""
    state, _ = build_state(config, build_transformer_config(config), vocab_size, DEVICE)
    for chunk in state.model:
        chunk.train()
    waits = Waits()
    used = waits if config.overlap.overlap_recompute else None
    return Arm(
        name=name,
        config=config,
        state=state,
        iterators=build_iterators(config, state.model, DEVICE, splits.train, 0),
        waits=waits,
        schedule=stack.enter_context(open_pipeline(config, DEVICE, used)),
        times_s=[],
        losses=[],
        figures=[],
    )


def build_arms(base: Sequence[str], arms: dict[str, list[str]], stack: contextlib.ExitStack) -> list[Arm]:
    """Build every arm; they share data and Megatron-Core's process groups."""
    configs = {name: parse_command_line([*base, *flags], os.environ) for name, flags in arms.items()}
    for config in configs.values():
        validate(config)
    first = next(iter(configs.values()))
    tokenizer = build_tokenizer(first)
    splits = build_datasets(first, tokenizer)
    vocab_size = padded_vocab_size(first, tokenizer)
    return [build_arm(name, config, vocab_size, splits, stack) for name, config in configs.items()]


def take_turn(arm: Arm, iterations: int) -> None:
    """Run one uncounted and then the counted iterations of an arm."""
    with open_overlap(arm.config, arm.state.model, DEVICE) as overlap:
        arm.waits.target = overlap.pipeline_waits if overlap is not None else None
        step = TrainStep(arm.config, overlap=overlap, forward_backward=arm.schedule)
        for number in range(iterations + 1):
            torch.distributed.barrier()
            started_s = time.perf_counter()
            result = step(arm.state, arm.iterators)
            torch.distributed.barrier()
            if number:
                arm.times_s.append(time.perf_counter() - started_s)
            elif overlap is not None:
                overlap.figures.take()
            if result.loss is not None:
                arm.losses.append(float(result.loss))
        if overlap is not None:
            arm.figures.append(overlap.figures.take())


def medians(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median over turns of each figure."""
    names = {name for turn in figures for name in turn}
    return {name: statistics.median(turn[name] for turn in figures if name in turn) for name in sorted(names)}


def peaks_of_ranks(rank: int, ranks: int) -> list[int]:
    """Most resident memory of each rank's process so far, all of its arms together."""
    peaks = torch.zeros(ranks, dtype=torch.int64)
    peaks[rank] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.distributed.all_reduce(peaks)
    found: list[int] = peaks.tolist()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", required=True, help='JSON: {"base": [flags], "arms": {name: [flags]}}')
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the last rank writes its result here")
    options = parser.parse_args()
    case = json.loads(options.case)
    torch.set_num_threads(1)
    config = parse_command_line(case["base"], os.environ)
    with contextlib.ExitStack() as stack:
        stack.enter_context(initialize_distributed(config, DEVICE))
        stack.enter_context(emulated_link(config.distributed))
        arms = build_arms(case["base"], case["arms"], stack)
        for turn in range(options.rounds):
            start = turn % len(arms)
            for arm in [*arms[start:], *arms[:start]]:
                take_turn(arm, options.iterations)
        peaks = peaks_of_ranks(config.world.rank, config.world.world_size)
        if config.world.rank == config.world.world_size - 1:
            result = {
                arm.name: {
                    "times_s": arm.times_s,
                    "losses": arm.losses,
                    "figures": medians(arm.figures),
                    "peak_rss_bytes": peaks,
                }
                for arm in arms
            }
            options.output.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    status = run_guarded(main)
    if status:
        leave(status)
