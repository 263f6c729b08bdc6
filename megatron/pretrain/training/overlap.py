"""Where overlapped recompute is loaded: only here, and only with --overlap-recompute (docs/overlap.md)."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel

from megatron.overlap.pipeline.waits import PipelineWaits
from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.config.checks.overlap import POLICY
from overlap_recompute.plan.policy_text import parse_policy

BYTES_PER_MIB = 1 << 20
DEFAULT_POLICY = "all"


class OverlapFigures(Protocol):
    """What overlapped recompute did."""

    def take(self) -> dict[str, float]:
        """Figures of the steps since the last call, by name; a collective."""
        ...


class Overlap(Protocol):
    """Overlapped recompute, as a training step sees it (`megatron.overlap.session.OverlapSession`)."""

    @property
    def figures(self) -> OverlapFigures:
        """What it did so far."""
        ...

    @property
    def pipeline_waits(self) -> PipelineWaits:
        """Who recomputes in the waits of our own schedules."""
        ...

    def forward_step(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The forward step that a schedule is to call in place of `run`."""
        ...

    def step(self) -> AbstractContextManager[None]:
        """Around all forward and backward passes of one training step."""
        ...


def open_overlap(
    config: PretrainConfig, model: list[DistributedDataParallel], device: torch.device
) -> AbstractContextManager[Overlap | None]:
    """Attach overlapped recompute to the model for as long as the context lasts; None when it is off.

    Args:
        config: the options of the run.
        model: the chunks of this rank.
        device: where they are.

    Raises:
        ConfigError: the policy names what this model cannot drop.
    """
    options = config.overlap
    if not options.overlap_recompute:
        return nullcontext()
    from megatron.overlap.session import OverlapSession  # noqa: PLC0415
    from megatron.overlap.settings import OverlapSettings  # noqa: PLC0415

    stage = parallel_state.get_pipeline_model_parallel_rank()
    stages = config.parallel.pipeline_model_parallel_size
    policy = parse_policy(options.overlap_recompute_policy or DEFAULT_POLICY, stages, flag=POLICY)
    prefetch_mib, folder = options.overlap_recompute_prefetch_mib, options.overlap_recompute_trace
    settings = OverlapSettings(
        rank=config.world.rank,
        stage=stage,
        stages=stages,
        microbatches=config.num_microbatches,
        drop=policy.stages[stage],
        serialize=options.overlap_recompute_serialize or policy.on_demand,
        prefetch_cap_bytes=None if prefetch_mib is None else int(prefetch_mib * BYTES_PER_MIB),
        verify=options.overlap_recompute_verify,
        trace_folder=None if folder is None else Path(folder),
        flags=json.dumps(config.to_dict()["overlap"], sort_keys=True),
        device=device,
    )
    return OverlapSession(settings, model)
