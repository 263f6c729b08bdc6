"""Who runs the passes of a step: Megatron-Core's schedules or our own (docs/pipeline.md)."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron.overlap.pipeline.schedule import PipelineSchedule
from megatron.overlap.pipeline.waits import PipelineWaits
from megatron.pretrain.config import PretrainConfig

ForwardBackward = Callable[..., list[Any]]
"""Runs all passes of a step; called like what `get_forward_backward_func()` returns."""


def open_pipeline(
    config: PretrainConfig, device: torch.device, waits: PipelineWaits | None = None
) -> AbstractContextManager[ForwardBackward]:
    """The schedule that `--schedule-impl` asks for, as long as the context lasts.

    Args:
        config: the options of the run.
        device: where the model lives.
        waits: who may use the waits for other stages; only our own schedules offer them.
    """
    return _IMPLEMENTATIONS[config.parallel.schedule_impl](config, device, waits)


def _stock(
    config: PretrainConfig, device: torch.device, waits: PipelineWaits | None
) -> AbstractContextManager[ForwardBackward]:
    return nullcontext(get_forward_backward_func())


def _overlap(
    config: PretrainConfig, device: torch.device, waits: PipelineWaits | None
) -> AbstractContextManager[ForwardBackward]:
    timeout = timedelta(minutes=config.distributed.distributed_timeout_minutes)
    return PipelineSchedule(device, waits=waits, timeout=timeout)


_IMPLEMENTATIONS: Mapping[str, Callable[..., AbstractContextManager[ForwardBackward]]] = {
    "stock": _stock,
    "overlap": _overlap,
}
