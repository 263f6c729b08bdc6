"""Pipelines that fail: ranks die, raise, or cannot recompute, while messages are in flight and threads follow them.

Played by `pipeline_ranks`, in processes forked from it; the scenarios run side by side. Writes FOLDER/SCENARIO.json as
`fault_ranks` does.
"""

import os
import pathlib
import signal
from collections.abc import Callable, Sequence
from typing import Any

from megatron.pretrain.platform import install_platform

install_platform("gloo")

import torch  # noqa: E402
from megatron.core import parallel_state  # noqa: E402

from megatron.overlap.pipeline.schedule import PipelineSchedule  # noqa: E402
from megatron.overlap.pipeline.waits import Pending  # noqa: E402
from megatron.pretrain.training import step as training_step  # noqa: E402
from overlap_recompute.plan.actions import Action  # noqa: E402
from overlap_recompute.plan.errors import UserError  # noqa: E402
from overlap_recompute.schedules import Phase  # noqa: E402
from tests.distributed.fault_ranks import Scenario, play  # noqa: E402
from tests.distributed.overlap_support import CPU, GPT, build, config_of, groups  # noqa: E402

FLAGS = f"{GPT} --num-layers 3 --pipeline-model-parallel-size 3 --global-batch-size 8"
FAULT_AT = (2, 3)
"""Step and microbatch."""


class Poll:
    """Polls waits to their end."""

    def finish(self, pending: Pending, *, wait: Action, phase: Phase, ahead: Sequence[Action]) -> None:
        while ahead and not pending.is_completed():
            torch.ones(8, 8) @ torch.ones(8, 8)
        pending.wait()


class FailingRecompute(Poll):
    """Cannot recompute on the first stage."""

    def finish(self, pending: Pending, *, wait: Action, phase: Phase, ahead: Sequence[Action]) -> None:
        if ahead and phase is Phase.COOL_DOWN and parallel_state.is_pipeline_first_stage():
            raise UserError("unit 'activation' of layer 0 that differs", "the same bits", "report it")
        super().finish(pending, wait=wait, phase=phase, ahead=ahead)


class FailsInBackward(torch.autograd.Function):
    """Hands a tensor on; its backward pass raises."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("boom in backward")


def run(spoil: Callable[[torch.Tensor], torch.Tensor], stage: int, waits: Any = None) -> int:
    """Train for ever; `spoil` gets one output on one stage."""
    with groups(FLAGS):
        config, calls = config_of(FLAGS), [0]
        state = build(config)

        def forward_step(iterator: Any, model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
            output, loss = training_step.forward_step(iterator, model)
            calls[0] += 1
            if calls[0] == FAULT_AT[0] * config.num_microbatches:
                os.write(1, b"running\n")
            due = calls[0] == FAULT_AT[0] * config.num_microbatches + FAULT_AT[1] + 1
            here = parallel_state.get_pipeline_model_parallel_rank() == stage
            return (spoil(output) if due and here else output), loss

        ones = torch.ones(2, 16, dtype=torch.int64)
        batch = {"tokens": ones, "labels": ones, "loss_mask": ones.float(), "position_ids": ones}
        with PipelineSchedule(CPU, waits=waits or Poll()) as schedule:
            while True:
                schedule(
                    forward_step_func=forward_step,
                    data_iterator=[iter(lambda: batch, None)],
                    model=state.model,
                    num_microbatches=config.num_microbatches,
                    seq_length=config.model.seq_length,
                    micro_batch_size=2,
                )


def keep(output: torch.Tensor) -> torch.Tensor:
    return output


def fail(output: torch.Tensor) -> torch.Tensor:
    raise ValueError("boom in forward")


def fail_in_backward(output: torch.Tensor) -> torch.Tensor:
    return FailsInBackward.apply(output)


SCENARIOS = {
    "pipeline_kill": Scenario(body=lambda: run(keep, 1), strike=(1, signal.SIGKILL)),
    "pipeline_forward": Scenario(body=lambda: run(fail, 1)),
    "pipeline_backward": Scenario(body=lambda: run(fail_in_backward, 1)),
    "pipeline_recompute": Scenario(body=lambda: run(keep, 1, FailingRecompute())),
}


def play_all(folder: pathlib.Path) -> None:
    """Play every scenario in a process of its own, all at once."""
    players = set()
    for name, scenario in SCENARIOS.items():
        player = os.fork()
        if player == 0:
            play(scenario, name, folder)
            os._exit(0)
        players.add(player)
    while players:
        players.discard(os.wait()[0])
