"""Forward and backward passes of one step, by Megatron-Core's own steps for one microbatch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megatron.overlap.pipeline.program import Instruction, Layout
from megatron.overlap.pipeline.schedules import upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCall:
    """What a caller asks of one step; the names are those of Megatron-Core's schedules."""

    forward_step_func: Callable[..., Any]
    """Runs the model on one microbatch; returns its output and a loss function."""
    data_iterators: Sequence[Iterator[Any] | None]
    """One per chunk."""
    chunks: Sequence[nn.Module]
    """Model chunks of this rank."""
    num_microbatches: int
    """Of the step."""
    forward_only: bool
    """No backward passes."""
    collect_non_loss_data: bool
    """Ask the loss function for other data than losses."""
    first_val_step: bool | None
    """Of an evaluation: its first step."""


class Passes:
    """Runs passes and collects what they yield."""

    def __init__(self, call: StepCall, layout: Layout, config: Any, context_parallel_size: int) -> None:
        self._call, self._layout, self._config = call, layout, config
        self._context_parallel_size = context_parallel_size
        self.collected: list[Any] = []
        """What the loss functions returned for the caller, in the order of the forward passes."""
        device = next(call.chunks[0].parameters()).device
        self.tokens = torch.zeros([], dtype=torch.int, device=device)
        """Tokens counted by the loss functions that count, a scalar."""

    def forward(self, instruction: Instruction, given: Tensor | None) -> Tensor:
        """The output of a chunk for a microbatch.

        Args:
            instruction: the F.
            given: what the stage before put out, [sequence, micro_batch, hidden]; None on the first stage.
        """
        (chunk, microbatch), call, layout = instruction.key, self._call, self._layout
        last = chunk == layout.chunks - 1 and layout.stage == layout.stages - 1
        output, tokens = upstream.forward_step(
            call.forward_step_func,
            call.data_iterators[chunk],
            call.chunks[chunk],
            call.num_microbatches,
            given,
            self.collected,
            self._config,
            self._context_parallel_size,
            call.collect_non_loss_data,
            is_first_microbatch=upstream.check_first_val_step(call.first_val_step, call.forward_only, microbatch == 0),
            current_microbatch=microbatch,
            vp_stage=chunk if layout.chunks > 1 else None,
            is_last_stage=last,
        )
        self.tokens += tokens
        return output

    def backward(self, given: Tensor | None, output: Tensor, gradient: Tensor | None) -> Tensor | None:
        """The gradient of a chunk's input; None on the first stage. Adds to the gradients of the parameters.

        Args:
            given: the input of the forward pass.
            output: what the forward pass put out; its data may be gone (`release`).
            gradient: of the output; None on the last stage, where the output is the loss.
        """
        return upstream.backward_step(given, output, gradient, None, self._config)

    def release(self, output: Tensor) -> None:
        """Let go of an output's data where the model's `deallocate_pipeline_outputs` says so; its graph stays."""
        upstream.deallocate_output_tensor(output, self._config.deallocate_pipeline_outputs)
