"""Who runs the passes of a step: Megatron-Core's schedules or our own (docs/pipeline.md)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.training.overlap import open_own_schedule

if TYPE_CHECKING:
    from megatron.overlap.pipeline.waits import PipelineWaits

ForwardBackward = Callable[..., list[Any]]
"""Runs all passes of a step; called like what `get_forward_backward_func()` returns."""


def open_pipeline(
    config: PretrainConfig, device: torch.device, waits: "PipelineWaits | None" = None
) -> AbstractContextManager[ForwardBackward]:
    """The schedule that `--schedule-impl` asks for, as long as the context lasts.

    Args:
        config: the options of the run.
        device: where the model lives.
        waits: who may use the waits for other stages; only our own schedules offer them.
    """
    if config.parallel.schedule_impl == "overlap":
        return open_own_schedule(config, device, waits)
    return nullcontext(get_forward_backward_func())
