"""One rank of benchmarks/simulated_real.py: arms and profiles of one layout, taking turns in one process on each rank.

A turn sets the rate of the lab's links, measures the machine's speed, and runs one arm: an iteration that does not
count and then those that do. A turn of the arm `PROFILE` measures a profile in place of that, in the same way as
`--overlap-recompute-profile`. So what is predicted from and what is predicted stand side by side in time, in the same
processes.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from functools import partial
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.overlap_cpu_ranks import DEVICE, Arm, build_arms, take_turn  # noqa: E402

PROFILE = "profile"
LAB, BURST_BYTES, QUEUE_MS = "linklab", 131072, 2000
"""As tools/linklab shapes by itself."""
PROBE_SIZE, PROBE_ROUNDS = 512, 12

import torch  # noqa: E402
from torch import distributed  # noqa: E402

from megatron.overlap.measuring.start import MeasuredStart, MeasuringPlan  # noqa: E402
from megatron.pretrain.config import parse_command_line  # noqa: E402
from megatron.pretrain.data.tokenizers import build_tokenizer, padded_vocab_size  # noqa: E402
from megatron.pretrain.distributed.failure import leave, run_guarded  # noqa: E402
from megatron.pretrain.distributed.initialize import initialize_distributed  # noqa: E402
from megatron.pretrain.logs.model_shape import ModelShape, shape_of  # noqa: E402
from megatron.pretrain.model import build_transformer_config  # noqa: E402
from megatron.pretrain.training.profile_facts import facts_of_profile  # noqa: E402
from megatron.pretrain.training.step import TrainStep  # noqa: E402
from overlap_recompute.plan.codec import write_record  # noqa: E402
from overlap_recompute.plan.profile import Profile  # noqa: E402


def set_rate(rate_mbit: int) -> None:
    """Shape all links of the lab that this process is in anew; rank 0 does it, all ranks wait."""
    distributed.barrier()
    if distributed.get_rank() == 0:
        mine = f"{LAB}-{os.getppid()}-"
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        spaces = [line.split()[0] for line in listed.splitlines() if line.startswith(mine)]
        assert spaces, f"no namespace of the lab {mine}"
        for space in spaces:
            hosts = distributed.get_world_size() if space.endswith("-hub") else 0
            for device in [f"port{host}" for host in range(hosts)] or ["lab0"]:
                words = f"tc -n {space} qdisc replace dev {device} root tbf rate {rate_mbit}mbit"
                words += f" burst {BURST_BYTES}b latency {QUEUE_MS}ms"
                subprocess.run(words.split(), capture_output=True, check=True)
    distributed.barrier()


def probe_ms() -> float:
    """Time of a fixed load, products of matrices and passes over memory, on the slowest rank at this moment."""
    matrix = torch.ones(PROBE_SIZE, PROBE_SIZE)
    long = torch.ones(1 << 20)
    distributed.barrier()
    found = []
    for _ in range(PROBE_ROUNDS):
        begin_s = time.perf_counter()
        for _ in range(4):
            torch.mm(matrix, matrix)
            long.mul_(1.0)
        found.append((time.perf_counter() - begin_s) * 1e3)
    slowest = torch.tensor([sorted(found)[PROBE_ROUNDS // 2]], dtype=torch.float64)
    distributed.all_reduce(slowest, op=distributed.ReduceOp.MAX)
    return float(slowest)


def take_profile(arm: Arm, shape: ModelShape, iterations: int) -> Profile:
    """Measure a profile of an arm's model in one warm-up iteration and so many that count."""
    found: list[Profile] = []

    def follow(profile: Profile) -> contextlib.AbstractContextManager[Any]:
        found.append(profile)
        return contextlib.nullcontext()

    parallel = arm.config.parallel
    plan = MeasuringPlan(
        warm_up=1,
        iterations=iterations,
        facts=partial(facts_of_profile, arm.config, shape, (), DEVICE),
        base_bytes=0,
        settled_bytes=lambda: 0,  # memory is another benchmark's
        follow=follow,
        uses_waits=arm.config.overlap.overlap_recompute,
        length=iterations + 1,
    )
    stages = parallel.pipeline_model_parallel_size
    stage = arm.config.world.rank % stages if stages > 1 else 0
    with MeasuredStart(plan, arm.state.model, DEVICE, stage=stage, stages=stages) as start:
        arm.waits.target = start.pipeline_waits
        step = TrainStep(arm.config, overlap=start, forward_backward=arm.schedule)
        for _ in range(iterations + 1):
            distributed.barrier()
            with start.iteration():
                step(arm.state, arm.iterators)
            start.settle()
    return found[0]


def run_turn(turn: dict[str, Any], arms: dict[str, Arm], shape: ModelShape) -> dict[str, Any]:
    """One turn; returns it with what it showed."""
    arm = arms[turn["arm"]]
    set_rate(turn["rate_mbit"])
    found = {**turn, "probe_ms": probe_ms()}
    if turn["kind"] == PROFILE:
        profile = take_profile(arm, shape, turn["iterations"])
        if distributed.get_rank() == 0:
            write_record(pathlib.Path(turn["path"]), profile)
        return found
    take_turn(arm, turn["iterations"])
    found |= {"times_s": arm.times_s, "figures": arm.figures.pop() if arm.figures else {}}
    arm.times_s = []
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--piece", type=pathlib.Path, required=True, help="JSON: base and arms (flags), turns")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="rank 0 writes the turns here")
    options = parser.parse_args()
    piece = json.loads(options.piece.read_text())
    torch.set_num_threads(1)
    config = parse_command_line(piece["base"], os.environ)
    transformer_config = build_transformer_config(config)
    vocab_size = padded_vocab_size(config, build_tokenizer(config))
    learned = config.model.position_embedding_type == "learned_absolute"
    shape = shape_of(
        transformer_config,
        padded_vocab_size=vocab_size,
        sequence_length=config.model.seq_length,
        max_position_embeddings=config.max_position_embeddings if learned else 0,
        tied_embeddings=not config.model.untie_embeddings_and_output_weights,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(initialize_distributed(config, DEVICE))
        arms = {arm.name: arm for arm in build_arms(piece["base"], piece["arms"], stack)}
        done = [run_turn(turn, arms, shape) for turn in piece["turns"]]
        if config.world.rank == 0:
            options.output.write_text(json.dumps(done))
    return 0


if __name__ == "__main__":
    status = run_guarded(main)
    if status:
        leave(status)
