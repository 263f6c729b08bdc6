"""Loss on held-out data."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.training.pipeline import ForwardBackward
from megatron.pretrain.training.state import TrainingState
from megatron.pretrain.training.step import BatchIterator, forward_step, mean_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The outcome of one evaluation."""

    loss: float | None
    """Mean loss per token; None on every rank but those of the last stage."""

    samples: int
    """Sequences read, over all data-parallel ranks."""


@contextlib.contextmanager
def untimed(config: TransformerConfig) -> Iterator[None]:
    """Within, the schedules start no timers: those of the iterations would count what is evaluated between them."""
    timers, config.timers = config.timers, None
    try:
        yield
    finally:
        config.timers = timers


@torch.no_grad()
def evaluate(
    config: PretrainConfig,
    state: TrainingState,
    iterators: list[BatchIterator | None],
    forward_backward: ForwardBackward | None = None,
) -> Evaluation:
    """Run `--eval-iters` global batches forward and average their loss over tokens.

    Neither weights nor random-number generators move: dropout is off, and data order has generators of its own.
    """
    for chunk in state.model:
        chunk.eval()
    run = forward_backward or get_forward_backward_func()
    figures: list[dict[str, torch.Tensor]] = []
    with untimed(state.model[0].config):
        for _ in range(config.training.eval_iters):
            figures += run(
                forward_step_func=forward_step,
                data_iterator=iterators,
                model=state.model,
                num_microbatches=config.num_microbatches,
                seq_length=config.model.seq_length,
                micro_batch_size=config.training.micro_batch_size,
                forward_only=True,
            )
    for chunk in state.model:
        chunk.train()
    loss = mean_loss(figures)
    samples = config.training.eval_iters * config.global_batch_size
    return Evaluation(loss=None if loss is None else float(loss), samples=samples)
