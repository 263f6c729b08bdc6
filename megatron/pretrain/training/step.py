"""One training step: forward and backward over all microbatches, the update, and the figures it yields."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.training.not_finite import gradients_are_finite
from megatron.pretrain.training.overlap import Overlap
from megatron.pretrain.training.pipeline import ForwardBackward
from megatron.pretrain.training.state import TrainingState

Batch = dict[str, torch.Tensor]
BatchIterator = Iterator[Batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step did."""

    loss: torch.Tensor | None
    """Mean loss per token over the global batch, a scalar; None on every rank but those of the last stage."""

    grad_norm: float | None
    """Norm of the whole gradient before clipping; None when the update was skipped."""

    zeros_in_grad: int | None
    """Count of zeros in the gradient; None unless asked for."""

    updated: bool
    """False when a gradient was not finite (loss scaling) and the update was skipped."""


def masked_loss(loss_mask: torch.Tensor | None, losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean loss of one microbatch over its unmasked tokens.

    Args:
        loss_mask: [micro_batch, sequence] (this context-parallel rank's part), 1 where a token counts; None on ranks
            that read no data, where the schedules never ask for the loss.
        losses: [micro_batch, sequence], the model's output.

    Returns:
        The loss to differentiate, and {"lm loss": [sum of losses, count of tokens]} for the log. With context
        parallelism each rank returns its part of the sum over the count of all ranks: the schedule multiplies by
        the number of ranks and the gradient reduction averages, so that the gradient is that of the whole sequence.
    """
    assert loss_mask is not None, "the last stage reads data"
    mask = loss_mask.reshape(-1).float()
    sums = torch.stack([torch.sum(losses.reshape(-1).float() * mask), mask.sum()])
    count = sums[1].detach().clone()
    if parallel_state.get_context_parallel_world_size() > 1:
        torch.distributed.all_reduce(count, group=parallel_state.get_context_parallel_group())
    # The schedule scales the loss in place; the figures for the log are a copy.
    return sums[0] / count.clamp(min=1), {"lm loss": sums.detach().clone()}


def forward_step(iterator: BatchIterator | None, model: torch.nn.Module) -> tuple[torch.Tensor, Callable]:
    """Run one microbatch through one model chunk; the signature that Megatron-Core's schedules call."""
    batch: Batch = next(iterator) if iterator is not None else {}
    output = model(batch.get("tokens"), batch.get("position_ids"), None, labels=batch.get("labels"))
    return output, partial(masked_loss, batch.get("loss_mask"))


def mean_loss(figures: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor | None:
    """Loss per token over all microbatches and data-parallel ranks; None where the loss is not computed."""
    if not figures:
        return None
    sums = torch.stack([figure["lm loss"] for figure in figures]).sum(dim=0)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size() > 1:
        torch.distributed.all_reduce(sums, group=group)
    return sums[0] / sums[1].clamp(min=1)


class TrainStep:
    """Runs steps over a state. Construction resolves everything that stays the same from step to step."""

    def __init__(
        self,
        config: PretrainConfig,
        before_update: Callable[[], None] = lambda: None,
        overlap: Overlap | None = None,
        forward_backward: ForwardBackward | None = None,
    ) -> None:
        """Args:
        config: the options of the run.
        before_update: called between the backward pass and the update: traffic started here runs beside the update.
        overlap: overlapped recompute; None when it is off.
        forward_backward: runs the passes of a step; the stock schedule when None.
        """
        self._forward_backward: ForwardBackward = forward_backward or get_forward_backward_func()
        self._forward_step = forward_step if overlap is None else overlap.forward_step(forward_step)
        self._around = nullcontext if overlap is None else overlap.step
        self._before_update = before_update
        self._batch_size = config.global_batch_size
        self._shape = {
            "num_microbatches": config.num_microbatches,
            "seq_length": config.model.seq_length,
            "micro_batch_size": config.training.micro_batch_size,
        }

    def __call__(self, state: TrainingState, iterators: list[BatchIterator | None]) -> StepResult:
        """Train on one global batch and move `state.progress` on by one iteration."""
        for chunk in state.model:
            chunk.zero_grad_buffer()
        state.optimizer.zero_grad()
        with gradients_are_finite(state.progress.iteration + 1), self._around():
            figures = self._forward_backward(
                forward_step_func=self._forward_step,
                data_iterator=iterators,
                model=state.model,
                forward_only=False,
                **self._shape,
            )
        self._before_update()
        updated, grad_norm, zeros_in_grad = state.optimizer.step()
        if updated:
            state.scheduler.step(increment=self._batch_size)
        progress = state.progress
        state.progress = replace(
            progress,
            iteration=progress.iteration + 1,
            consumed_train_samples=progress.consumed_train_samples + self._batch_size,
            skipped_iterations=progress.skipped_iterations + (not updated),
        )
        return StepResult(
            loss=mean_loss(figures), grad_norm=grad_norm, zeros_in_grad=zeros_in_grad, updated=bool(updated)
        )
