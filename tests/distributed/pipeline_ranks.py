"""Ranks of test_pipeline_schedules.py: one process imports everything once and forks the ranks of each world size.

Usage: python -m tests.distributed.pipeline_ranks FOLDER (WORLD_SIZE | faults)...
Every rank trains each case twice, with Megatron-Core's schedules and with ours, and compares all bits. Writes one line
per case to FOLDER/WORLD_SIZE.RANK.
"""

import contextlib
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron.pretrain.platform import install_platform

install_platform("gloo")

import torch  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.utils import get_batch_on_this_cp_rank  # noqa: E402

from megatron.overlap.pipeline.schedule import PipelineSchedule  # noqa: E402
from megatron.overlap.pipeline.waits import Pending  # noqa: E402
from megatron.pretrain.config import PretrainConfig  # noqa: E402
from megatron.pretrain.training import step as training_step  # noqa: E402
from megatron.pretrain.training.evaluate import evaluate  # noqa: E402
from megatron.pretrain.training.pipeline import ForwardBackward, open_pipeline  # noqa: E402
from megatron.pretrain.training.step import TrainStep  # noqa: E402
from overlap_recompute.plan.actions import Action  # noqa: E402
from overlap_recompute.schedules import Phase  # noqa: E402
from tests.distributed.overlap_support import (  # noqa: E402
    CPU,
    GPT,
    LLAMA,
    MOE,
    Record,
    build,
    config_of,
    gradients,
)
from tests.distributed.pipeline_faults import play_all  # noqa: E402

STEPS = 5
EVALUATE = "--eval-iters 1"
DROPOUT = "--attention-dropout 0.1 --hidden-dropout 0.1"
PP2, PP4 = "--pipeline-model-parallel-size 2", "--pipeline-model-parallel-size 4"
TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"
VPP2 = "--num-layers-per-virtual-pipeline-stage 1"
SHARDED = "--use-distributed-optimizer --overlap-grad-reduce --ddp-bucket-size 5000"
GATHERED = f"{SHARDED} --overlap-param-gather"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration, trained by both schedules."""

    flags: str
    """Of the model and the layout."""
    global_batch_size: int = 8
    """Two sequences make a microbatch."""
    filled: bool = False
    """Offer the waits to somebody who uses them."""
    late: bool = False
    """The last stage takes its time, so that sends of the others stay under way."""
    forward_step: Callable[..., Any] = training_step.forward_step
    """What the schedules call."""
    spoilt: bool = False
    """Let our arm learn at another rate: a comparison that must fail."""


class BusyWaits:
    """Computes in every wait that it may use until that is over, and keeps what it was told."""

    def __init__(self) -> None:
        self.phases: set[Phase] = set()
        self.filled = 0

    def finish(self, pending: Pending, *, wait: Action, phase: Phase, ahead: Sequence[Action]) -> None:
        self.phases.add(phase)
        begin_s = time.monotonic()
        while ahead and not pending.is_completed():
            torch.ones(64, 64) @ torch.ones(64, 64)
            time.sleep(1e-4)  # there are fewer cores than ranks
            assert time.monotonic() - begin_s < 60, "a receive that never shows as completed"
        self.filled += bool(ahead)
        pending.wait()


def count_tokens(iterator: Any, model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
    """A forward step whose loss function returns the number of tokens, and leaves dividing by it to the schedule."""
    output, loss = training_step.forward_step(iterator, model)

    def with_count(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        _, figures = loss(losses)
        return losses.float().sum(), figures["lm loss"][1].to(torch.int), figures

    return output, with_count


def dawdle(iterator: Any, model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
    """A forward step that is slow on the last stage."""
    if parallel_state.is_pipeline_last_stage():
        time.sleep(0.02)
    return training_step.forward_step(iterator, model)


CASES: dict[int, tuple[Case, ...]] = {
    2: (
        Case(flags=f"{GPT} {DROPOUT} {PP2} {EVALUATE} --timing-log-level 2"),
        Case(flags=f"{GPT} {DROPOUT} {PP2}", filled=True, late=True),
        Case(flags=f"{LLAMA} {PP2} --bf16", global_batch_size=6, filled=True),
        Case(flags=f"{GPT} {PP2} --pipeline-model-parallel-layout Et*2|tL --num-layers 3", global_batch_size=2),
        Case(flags=f"{GPT} {PP2} --fp16 --initial-loss-scale 4096", global_batch_size=4),
        Case(flags=f"{MOE} {PP2}", global_batch_size=10),
        Case(flags=f"{GPT} {DROPOUT} {PP2} {VPP2} --num-layers 4 {EVALUATE}", late=True),
        Case(flags=f"{LLAMA} {PP2} {VPP2} --num-layers 6", filled=True),
        Case(flags=f"{GPT} {PP2} {VPP2} --num-layers 4", forward_step=count_tokens),
        Case(flags=f"{GPT} {DROPOUT} {SHARDED} {EVALUATE}"),
        Case(flags=f"{GPT} {TP2}", forward_step=count_tokens),
        Case(flags=f"{GPT} {PP2}", global_batch_size=2, spoilt=True),
    ),
    4: (
        Case(flags=f"{GPT} {DROPOUT} {PP4} --num-layers 4 {EVALUATE}", global_batch_size=14, filled=True),
        Case(flags=f"{LLAMA} {PP4} --num-layers 4 --bf16", global_batch_size=4),
        Case(flags=f"{GPT} {PP4} {VPP2} --num-layers 8", filled=True),
        Case(flags=f"{GPT} {DROPOUT} {PP2} {SHARDED} {EVALUATE}", global_batch_size=16),
        Case(flags=f"{LLAMA} {PP2} {VPP2} --num-layers 6 {GATHERED} --bf16", global_batch_size=16),
        Case(flags=f"{GPT} {DROPOUT} {PP2} {TP2}", filled=True),
        Case(flags=f"{LLAMA} {PP2} --context-parallel-size 2", global_batch_size=6),
    ),
}  # fmt: skip


def batches(config: PretrainConfig) -> Iterator[dict[str, torch.Tensor]]:
    """Made-up microbatches: the same in every run, others on every data-parallel rank."""
    shape = config.training.micro_batch_size, config.model.seq_length + 1
    generator = torch.Generator().manual_seed(7 + parallel_state.get_data_parallel_rank())
    while True:
        tokens = torch.randint(0, 64, shape, generator=generator)
        batch = {
            "tokens": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "loss_mask": torch.ones(shape[0], shape[1] - 1),
            "position_ids": torch.arange(shape[1] - 1).expand(shape[0], -1),
        }
        yield get_batch_on_this_cp_rank({name: values.contiguous() for name, values in batch.items()})


def train(case: Case, config: PretrainConfig, forward_backward: ForwardBackward) -> Record:
    """A few steps, and an evaluation if the flags ask for one."""
    state = build(config)
    if case.forward_step is count_tokens:
        state.model[0].config.calculate_per_token_loss = True
    found: list[tuple[torch.Tensor, ...]] = []
    run = partial(_with_forward_step, forward_backward, dawdle if case.late else case.forward_step)
    step = TrainStep(config, before_update=lambda: found.append(gradients(state)), forward_backward=run)
    iterators = [batches(config) for _ in state.model]
    losses: list[Any] = [step(state, iterators).loss for _ in range(STEPS)]
    if config.training.eval_iters == 1:
        loss = evaluate(config, state, iterators, forward_backward).loss
        losses.append(None if loss is None else torch.tensor(loss))
    weights = tuple(weight.detach().clone() for chunk in state.model for weight in chunk.parameters())
    return Record(losses=tuple(losses), gradients=tuple(found), weights=weights)


def _with_forward_step(forward_backward: ForwardBackward, forward_step: Any, **call: Any) -> list[Any]:
    return forward_backward(**{**call, "forward_step_func": forward_step})


def compare(case: Case) -> str:
    """Train with both schedules; what differs, or how it went."""
    flags = f"{case.flags} --global-batch-size {case.global_batch_size}"
    config = config_of(flags)
    with model_parallel(config):
        with open_pipeline(config, CPU) as stock:
            expected = train(case, config, stock)
        assert len(expected.gradients) == STEPS and all(any(b.any() for b in found) for found in expected.gradients)
        waits = BusyWaits() if case.filled else None
        config = config_of(flags, "--schedule-impl overlap", "--lr 2e-2" if case.spoilt else "")
        with open_pipeline(config, CPU, waits) as ours:
            assert isinstance(ours, PipelineSchedule)
            differences = train(case, config, ours).differences(expected)
            counted = sum(sums.filled for sums in ours.take_waits().values())
    result = f"differs: {'; '.join(differences[:3])}" if differences else "equal"
    return (
        result if waits is None else f"{result}, {counted} of {waits.filled} waits filled in {len(waits.phases)} phases"
    )


@contextlib.contextmanager
def model_parallel(config: PretrainConfig) -> Iterator[None]:
    """Megatron-Core's groups of a layout, within process groups that stay."""
    parallel = config.parallel
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline_size,
        context_parallel_size=parallel.context_parallel_size,
    )
    yield
    parallel_state.destroy_model_parallel()


def run_rank(world_size: int, rank: int, folder: pathlib.Path) -> None:
    environ = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in environ.items()}, MASTER_ADDR="127.0.0.1")
    store = f"file://{folder}/store.{world_size}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    with open(folder / f"{world_size}.{rank}", "w", buffering=1) as report:
        for case in CASES[world_size]:
            begin_s = time.monotonic()
            try:
                result = compare(case)
            except BaseException:
                report.write(traceback.format_exc())
                raise
            report.write(f"{result} | {case.flags} | {time.monotonic() - begin_s:.1f} s\n")


def fork_ranks(world_size: int, folder: pathlib.Path) -> None:
    """Run the cases of a world size; the first rank that fails ends the others."""
    pids = set()
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                run_rank(world_size, rank, folder)
                status = 0
            finally:
                os._exit(status)
        pids.add(pid)
    while pids:
        pid, status = os.wait()
        pids.discard(pid)
        if status:
            for other in pids:
                os.kill(other, signal.SIGKILL)


def main() -> None:
    folder, *parts = sys.argv[1:]
    torch.set_num_threads(1)
    for part in parts:
        if part == "faults":
            play_all(pathlib.Path(folder))
        else:
            fork_ranks(int(part), pathlib.Path(folder))


if __name__ == "__main__":
    main()
