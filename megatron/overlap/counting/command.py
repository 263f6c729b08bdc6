"""Counts the model of a trainer's command line, in a process of its own (`python -m megatron.overlap.counting`)."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron.overlap.counting.count import count_run
from megatron.pretrain.config import PretrainConfig, parse_command_line, validate
from overlap_recompute.plan.codec import write_record
from overlap_recompute.plan.errors import ConfigError, UserError

USER_ERROR = 2


def main(argv: Sequence[str]) -> int:
    """Write the counted model to `--output`; a user's fault goes to standard output as JSON, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m megatron.overlap.counting")
    parser.add_argument("--output", type=Path, required=True, help="where to write the counted model")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="whose kernels are counted")
    parser.add_argument(
        "--world-size", type=int, default=0, help="ranks of the run; 0: the fewest that the layout takes"
    )
    parser.add_argument("flags", nargs="*", help="of pretrain_gpt.py, behind --")
    options = parser.parse_args(argv)
    try:
        config = config_of(options.flags, options.world_size)
        write_record(options.output, count_run(config, options.device))
    except UserError as error:
        words = {"found": error.found, "expected": error.expected, "next_step": error.next_step}
        sys.stdout.write(json.dumps(words) + "\n")
        return USER_ERROR
    return 0


def config_of(flags: Sequence[str], world_size: int) -> PretrainConfig:
    """The configuration of the first rank of a run with these flags.

    Args:
        flags: of `pretrain_gpt.py`.
        world_size: ranks; 0 for the fewest that the layout takes.

    Raises:
        ConfigError: flags that the trainer would refuse, or too few ranks.
    """
    words = (*flags, "--distributed-backend", "gloo")
    least = least_world_size(parse_command_line(words, _environment(1)))
    if world_size and world_size % least:
        raise ConfigError(f"--world-size {world_size}", f"a multiple of {least}, the ranks of one copy", "correct it")
    config = parse_command_line(words, _environment(world_size or least))
    validate(config)
    return config


def least_world_size(config: PretrainConfig) -> int:
    """Ranks of the smallest run with this layout."""
    parallel = config.parallel
    dense = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    expert_ranks = parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size
    return math.lcm(dense, expert_ranks * parallel.expert_model_parallel_size) * parallel.pipeline_model_parallel_size


def _environment(world_size: int) -> dict[str, str]:
    return {"RANK": "0", "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
