"""One rank of benchmarks/overlap_cpu.py: every arm on its own copy of the model, taking turns in one process.

A turn attaches an arm's recompute, runs one iteration that is not counted and then the counted ones, and takes it back.
The order of the arms changes from round to round. An iteration ends when the slowest rank has ended it.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron.pretrain.config import PretrainConfig, parse_command_line, validate  # noqa: E402
from megatron.pretrain.distributed.failure import leave, run_guarded  # noqa: E402
from megatron.pretrain.platform import install_platform  # noqa: E402

DEVICE = install_platform("gloo")

import torch  # noqa: E402

from megatron.pretrain.data.datasets import build_datasets  # noqa: E402
from megatron.pretrain.data.tokenizers import build_tokenizer, padded_vocab_size  # noqa: E402
from megatron.pretrain.distributed.emulated_link import emulated_link  # noqa: E402
from megatron.pretrain.distributed.initialize import initialize_distributed  # noqa: E402
from megatron.pretrain.model import build_transformer_config  # noqa: E402
from megatron.pretrain.training.batches import build_iterators  # noqa: E402
from megatron.pretrain.training.overlap import open_overlap  # noqa: E402
from megatron.pretrain.training.run import build_state  # noqa: E402
from megatron.pretrain.training.state import TrainingState  # noqa: E402
from megatron.pretrain.training.step import BatchIterator, TrainStep  # noqa: E402


@dataclass(slots=True, kw_only=True)
class Arm:
    """One way to train, with its own model, optimizer and place in the data."""

    name: str
    config: PretrainConfig
    state: TrainingState
    iterators: list[BatchIterator | None]
    times_s: list[float]
    losses: list[float]
    figures: dict[str, float]


def build_arms(base: Sequence[str], arms: dict[str, list[str]]) -> list[Arm]:
    """Build every arm; they share data and process groups."""
    configs = {name: parse_command_line([*base, *flags], os.environ) for name, flags in arms.items()}
    for config in configs.values():
        validate(config)
    first = next(iter(configs.values()))
    tokenizer = build_tokenizer(first)
    splits = build_datasets(first, tokenizer)
    built = []
    for name, config in configs.items():
        vocab_size = padded_vocab_size(config, tokenizer)
        state, _ = build_state(config, build_transformer_config(config), vocab_size, DEVICE)
        for chunk in state.model:
            chunk.train()
        built.append(
            Arm(
                name=name,
                config=config,
                state=state,
                iterators=build_iterators(config, state.model, DEVICE, splits.train, 0),
                times_s=[],
                losses=[],
                figures={},
            )
        )
    return built


def take_turn(arm: Arm, iterations: int) -> None:
    """Run one uncounted and then the counted iterations of an arm."""
    with open_overlap(arm.config, arm.state.model, DEVICE) as overlap:
        step = TrainStep(arm.config, overlap=overlap)
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
            arm.figures = overlap.figures.take()


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
    with initialize_distributed(config, DEVICE), emulated_link(config.distributed):
        arms = build_arms(case["base"], case["arms"])
        for turn in range(options.rounds):
            start = turn % len(arms)
            for arm in [*arms[start:], *arms[:start]]:
                take_turn(arm, options.iterations)
        if config.world.rank == config.world.world_size - 1:
            result = {arm.name: {"times_s": arm.times_s, "losses": arm.losses, "figures": arm.figures} for arm in arms}
            options.output.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    status = run_guarded(main)
    if status:
        leave(status)
