"""Stand-ins for what the interpreter calls; each keeps a record of what happened."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from megatron.pretrain.platform import install_platform
from overlap_recompute.plan.actions import Action
from overlap_recompute.schedules import Message, Phase

install_platform("gloo")  # before the first import of megatron.core, which the next lines cause
from megatron.overlap.pipeline.gradient_sync import GradientSync  # noqa: E402
from megatron.overlap.pipeline.interpreter import Interpreter  # noqa: E402
from megatron.overlap.pipeline.program import Instruction, Layout, Program, build_program  # noqa: E402
from megatron.overlap.pipeline.waits import Pending, PipelineWaits, WaitLog  # noqa: E402

SHAPE = (2, 1, 3)
NO_SYNC = SimpleNamespace(no_sync_func=None, grad_sync_func=None, param_sync_func=None)


class Passes:
    """Passes that compute nothing: an output is the instruction's number, a gradient its negative."""

    def __init__(self, record: list[str], fails_at: str = "") -> None:
        self.record, self.fails_at = record, fails_at
        self.released: list[Tensor] = []
        self.given: dict[str, Any] = {}

    def forward(self, instruction: Instruction, given: Tensor | None) -> Tensor:
        action = str(instruction.action)
        if action == self.fails_at:
            raise ValueError("boom")
        self.record.append(action)
        self.given[action] = given
        return torch.full(SHAPE, float(instruction.number))

    def backward(self, given: Tensor | None, output: Tensor, gradient: Tensor | None) -> Tensor:
        self.record.append("B")
        return torch.full(SHAPE, -1.0)

    def release(self, output: Tensor) -> None:
        output.data = torch.empty(1)
        self.released.append(output)


class Posted:
    """A receive whose tensor comes after it was asked for a few times."""

    def __init__(self, tensor: Tensor, polls: int) -> None:
        self.tensor, self.polls, self.waited = tensor, polls, False

    def is_completed(self) -> bool:
        self.polls -= 1
        return self.polls < 0

    def wait(self) -> None:
        self.waited = True


class Started:
    """A send."""

    def __init__(self, record: list[str], name: str, tensor: Tensor) -> None:
        self.record, self.name, self.tensor = record, name, tensor

    def wait(self) -> None:
        self.record.append(f"sent {self.name}")


class Messages:
    """Messages that go nowhere."""

    def __init__(self, record: list[str]) -> None:
        self.record = record
        self.sent: list[Tensor] = []
        self.filled: list[str] = []

    def receive(self, message: Message, shape: Sequence[int], dtype: torch.dtype, *, is_filled: bool) -> Posted:
        self.record.append(f"post {message}")
        if is_filled:
            self.filled.append(str(message))
        return Posted(torch.zeros(tuple(shape), dtype=dtype), polls=3)

    def send(self, message: Message, tensor: Tensor) -> Started:
        self.record.append(f"send {message}")
        self.sent.append(tensor.detach())
        return Started(self.record, str(message), tensor.detach())


class NoTimers:
    def start(self, name: str) -> None:
        pass

    def stop(self, name: str) -> None:
        pass


class Waits:
    """Counts polls until a wait is over."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []
        self.error: Exception | None = None

    def finish(self, pending: Pending, *, wait: Action, phase: Phase, ahead: Sequence[Action]) -> None:
        if self.error is not None:
            raise self.error
        polls = 0
        while ahead and not pending.is_completed():
            polls += 1
        pending.wait()
        self.calls.append((phase.value, " ".join(map(str, ahead)), polls))


def program_of(stages: int, stage: int, microbatches: int, *, chunks: int = 1, **options: Any) -> Program:
    return build_program(Layout(stages=stages, stage=stage, chunks=chunks), microbatches, **options)


def interpreter_of(
    program: Program,
    record: list[str],
    *,
    passes: Any = None,
    waits: PipelineWaits | None = None,
    config: Any = NO_SYNC,
    stage: int = 0,
    chunks: Sequence[Any] = (None,),
) -> Interpreter:
    return Interpreter(
        program,
        passes=passes or Passes(record),
        transfers=Messages(record),  # type: ignore[arg-type]
        sync=GradientSync(config, chunks, program, stage),
        timers=NoTimers(),
        shape=SHAPE,
        dtype=torch.float32,
        waits=waits,
        log=WaitLog(),
    )
