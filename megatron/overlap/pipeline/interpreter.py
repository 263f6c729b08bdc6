"""Does what the list of this rank says: one small handler for each kind of action.

```
comp: F4 | post RECV_B1  post SEND_F4 | R(L7.linear_fc1) R(L7.activation) | B1 | post RECV_F6  post SEND_B1 | F5 ..
comm:    |                 activation 4 to the next stage ....            |
         |            gradient 1 from the next stage .................... |
                                      ^ WAIT_RECV_B1 begins: the window   ^ it ends
```
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron.overlap.pipeline.gradient_sync import GradientSync
from megatron.overlap.pipeline.passes import Passes
from megatron.overlap.pipeline.program import Instruction, Key, Program
from megatron.overlap.pipeline.transfers import Receive, Send
from megatron.overlap.pipeline.waits import PipelineWaits, WaitLog
from overlap_recompute.plan.actions import Action, Kind
from overlap_recompute.schedules import Message

JOURNAL_LENGTH = 64
"""Executed actions that are remembered."""


class Messenger(Protocol):
    """Starts messages (`transfers.Transfers`)."""

    def receive(self, message: Message, shape: Sequence[int], dtype: torch.dtype, *, is_filled: bool) -> Receive:
        """Post a receive."""
        ...

    def send(self, message: Message, tensor: Tensor) -> Send:
        """Start a send."""
        ...


class Timer(Protocol):
    """Megatron-Core's timers by name; every method may do nothing."""

    def start(self, name: str) -> None:
        """Start one."""
        ...

    def stop(self, name: str) -> None:
        """Stop it."""
        ...


class Interpreter:
    """One step of one rank. Tensors in flight live here, and only here.

    Args:
        program: what to do.
        passes: computes.
        transfers: moves tensors.
        sync: data-parallel communication.
        timers: of waits for receives.
        shape: of every message, [sequence, micro_batch, hidden].
        dtype: of every message.
        waits: who may use the waits for receives of a training step; None: nobody.
        log: where waits are counted.
    """

    def __init__(
        self,
        program: Program,
        *,
        passes: Passes,
        transfers: Messenger,
        sync: GradientSync,
        timers: Timer,
        shape: Sequence[int],
        dtype: torch.dtype,
        waits: PipelineWaits | None,
        log: WaitLog,
    ) -> None:
        self.program, self.passes, self.transfers, self.sync, self.timers = program, passes, transfers, sync, timers
        self.shape, self.dtype, self.log = tuple(shape), dtype, log
        self.waits = waits if program.trains else None
        self.journal: deque[Action] = deque(maxlen=JOURNAL_LENGTH)
        """The last actions that were executed."""
        self.current: Action | None = None
        """The action that runs."""
        self.inputs: dict[Key, Tensor] = {}
        self.outputs: dict[Key, Tensor] = {}
        self.gradients: dict[Key, Tensor] = {}
        self.outgoing: dict[Action, Tensor] = {}
        """What passes put out, by the send that has not started."""
        self.receives: dict[Action, Receive] = {}
        """What has been posted, by the wait that ends it."""
        self.sends: dict[Action, Send] = {}
        """What has been started, by the wait that ends it."""
        self.ahead: list[Action] = []
        """The R that the next wait may be filled with."""

    def run(self) -> None:
        """Do everything."""
        handlers, journal = _HANDLERS, self.journal
        profiled = torch.autograd._profiler_enabled()
        self.sync.begin()
        for instruction in self.program.instructions:
            action = self.current = instruction.action
            if profiled:
                with torch.profiler.record_function(str(action)):
                    handlers[action.kind](self, instruction)
            else:
                handlers[action.kind](self, instruction)
            journal.append(action)
        self.current = None
        self.sync.finish()
        left = (self.inputs, self.outputs, self.gradients, self.outgoing, self.receives, self.sends)
        assert not any(left), f"tensors are left at the end of a step: {left}"

    def forward(self, instruction: Instruction) -> None:
        """F: keep input and output for B, if there is one."""
        key, trains = instruction.key, self.program.trains
        self.ahead.clear()
        self.sync.before_forward(instruction.number)
        output = self.passes.forward(instruction, self.inputs.get(key) if trains else self.inputs.pop(key, None))
        if trains:
            self.outputs[key] = output
        if instruction.partner is not None:
            self.outgoing[instruction.partner] = output

    def backward(self, instruction: Instruction) -> None:
        """B: give input, output and gradient away."""
        key = instruction.key
        self.ahead.clear()
        self.sync.before_backward(instruction.number)
        gradient = self.passes.backward(
            self.inputs.pop(key, None), self.outputs.pop(key), self.gradients.pop(key, None)
        )
        self.sync.after_backward(instruction.number)
        if instruction.partner is not None:
            assert gradient is not None, f"no gradient reaches the input of {instruction.action}"
            self.outgoing[instruction.partner] = gradient

    def recompute(self, instruction: Instruction) -> None:
        """R: the next wait may be filled with recompute for this pass."""
        self.ahead.append(instruction.action)

    def send_output(self, instruction: Instruction) -> None:
        """SEND_F: the send owns the data from here on; the output keeps its graph."""
        output = self._send(instruction)
        if self.program.trains:
            self.passes.release(output)

    def send_gradient(self, instruction: Instruction) -> None:
        """SEND_B."""
        self._send(instruction)

    def receive(self, instruction: Instruction) -> None:
        """RECV_F, RECV_B: post it."""
        assert instruction.message is not None and instruction.partner is not None
        is_filled = instruction.is_filled and self.waits is not None
        self.receives[instruction.partner] = self.transfers.receive(
            instruction.message, self.shape, self.dtype, is_filled=is_filled
        )

    def wait_send(self, instruction: Instruction) -> None:
        """WAIT_SEND_F, WAIT_SEND_B: the memory is free from here on."""
        self.sends.pop(instruction.action).wait()

    def wait_input(self, instruction: Instruction) -> None:
        """WAIT_RECV_F: a window, and the end of it."""
        self.inputs[instruction.key] = self._wait(instruction, "forward-recv")

    def wait_gradient(self, instruction: Instruction) -> None:
        """WAIT_RECV_B: a window, and the end of it."""
        self.gradients[instruction.key] = self._wait(instruction, "backward-recv")

    def _send(self, instruction: Instruction) -> Tensor:
        assert instruction.message is not None and instruction.partner is not None
        tensor = self.outgoing.pop(instruction.action)
        self.sends[instruction.partner] = self.transfers.send(instruction.message, tensor)
        return tensor

    def _wait(self, instruction: Instruction, timer: str) -> Tensor:
        receive = self.receives[instruction.action]
        self.timers.start(timer)
        self.log.finish(receive, instruction.action, instruction.phase, tuple(self.ahead), self.waits)
        self.timers.stop(timer)
        self.ahead.clear()
        del self.receives[instruction.action]
        return receive.tensor


Handler = Callable[[Interpreter, Instruction], Any]

_HANDLERS: Mapping[Kind, Handler] = {
    Kind.F: Interpreter.forward,
    Kind.B: Interpreter.backward,
    Kind.R: Interpreter.recompute,
    Kind.SEND_F: Interpreter.send_output,
    Kind.SEND_B: Interpreter.send_gradient,
    Kind.RECV_F: Interpreter.receive,
    Kind.RECV_B: Interpreter.receive,
    Kind.WAIT_SEND_F: Interpreter.wait_send,
    Kind.WAIT_SEND_B: Interpreter.wait_send,
    Kind.WAIT_RECV_F: Interpreter.wait_input,
    Kind.WAIT_RECV_B: Interpreter.wait_gradient,
}
