"""Where `megatron.overlap` is loaded: only here, and only when it is asked for (docs/overlap.md, docs/pipeline.md)."""

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.config.checks.overlap import POLICY, WINDOWS, profile_iterations
from megatron.pretrain.logs.memory import settled_bytes
from megatron.pretrain.training.auto_plan import AutoPlanner
from megatron.pretrain.training.planned import settings_of_plan
from megatron.pretrain.training.trace_origin import DEFAULT_POLICY, trace_origin
from overlap_recompute.plan.codec import write_record
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.policy_text import parse_policy
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.profile_facts import ProfileFacts
from overlap_recompute.plan.validation import check_profile, read_plan
from overlap_recompute.plan.windows import ALL_WINDOWS, parse_windows

if TYPE_CHECKING:
    from megatron.overlap.pipeline.waits import PipelineWaits

logger = logging.getLogger(__name__)

BYTES_PER_MIB = 1 << 20


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
    def pipeline_waits(self) -> "PipelineWaits | None":
        """Who recomputes in the waits of our own schedules; None: nobody."""
        ...

    def forward_step(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The forward step that a schedule is to call in place of `run`."""
        ...

    def step(self) -> AbstractContextManager[None]:
        """Around all forward and backward passes of one training step."""
        ...

    def iteration(self) -> AbstractContextManager[None]:
        """Around one iteration, update included."""
        ...

    def settle(self) -> None:
        """Between iterations, outside of their time; collective."""
        ...

    def leave_last_marks(self, why: str) -> None:
        """The process is ended because its main thread is stuck; on another thread than that."""
        ...


def open_overlap(
    config: PretrainConfig,
    model: list[DistributedDataParallel],
    device: torch.device,
    plan: Plan | None = None,
    part: int = 1,
) -> AbstractContextManager[Overlap | None]:
    """Attach overlapped recompute to the model for as long as the context lasts; None when it is off.

    Args:
        config: the options of the run.
        model: the chunks of this rank.
        device: where they are.
        plan: to carry out; None: that of the flags, if they name one.
        part: of a run that plans anew: each part after the first has a folder of its own for traces.

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
    on_demand = options.overlap_recompute_serialize or policy.on_demand
    windows = parse_windows(options.overlap_recompute_windows or ALL_WINDOWS, flag=WINDOWS)
    settings = OverlapSettings(
        rank=config.world.rank,
        stage=stage,
        stages=stages,
        microbatches=config.num_microbatches,
        drop=policy.stages[stage],
        fills=frozenset() if on_demand else windows,
        prefetch_cap_bytes=None if prefetch_mib is None else int(prefetch_mib * BYTES_PER_MIB),
        verify=options.overlap_recompute_verify,
        trace_folder=None if folder is None else Path(folder, f"part-{part}" if part > 1 else ""),
        flight_folder=_flight_folder(config),
        flags=json.dumps(config.to_dict()["overlap"], sort_keys=True),
        device=device,
        delays_weight_gradients=options.overlap_recompute_delay_wgrad and not on_demand,
    )
    if plan is None and options.overlap_recompute_plan is not None:
        plan = read_plan(Path(options.overlap_recompute_plan))
    if plan is not None:
        settings = replace(settings, **settings_of_plan(plan, stage, settings.flags, fills=not on_demand))
    if folder is not None:
        settings = replace(settings, trace_origin=trace_origin(config, plan, settings, chunks=len(model)))
    return OverlapSession(settings, model)


def _flight_folder(config: PretrainConfig) -> Path | None:
    """Without a folder for traces: where a step that fails leaves its last marks, beside what the run writes anyhow."""
    logging_options = config.logging
    if config.checkpoint.save is not None:
        return Path(config.checkpoint.save)
    if logging_options.metrics_file is not None:
        return Path(logging_options.metrics_file).absolute().parent
    return None if logging_options.tensorboard_dir is None else Path(logging_options.tensorboard_dir)


def open_recompute(
    config: PretrainConfig,
    model: list[DistributedDataParallel],
    device: torch.device,
    *,
    facts: Callable[[], ProfileFacts],
    base_bytes: int,
    iterations: int,
) -> AbstractContextManager[Overlap | None]:
    """The same for a whole run, which may begin with measuring a profile (docs/profile.md).

    Args:
        config: the options of the run.
        model: the chunks of this rank.
        device: where they are.
        facts: what a profile says besides what is measured.
        base_bytes: memory that was taken before the model existed.
        iterations: that the run will take.
    """
    options = config.overlap
    plans = options.overlap_recompute_auto and options.overlap_recompute_plan is None
    if options.overlap_recompute_profile is None and not plans:
        return open_overlap(config, model, device)
    from megatron.overlap.measuring.drift import drifts  # noqa: PLC0415
    from megatron.overlap.measuring.gather import gather_bytes  # noqa: PLC0415
    from megatron.overlap.measuring.start import MeasuredStart, MeasuringPlan  # noqa: PLC0415

    planner = AutoPlanner(config, device, share=gather_bytes, drifts=drifts) if plans else None

    def follow(profile: Profile) -> AbstractContextManager[Overlap | None]:
        if config.world.rank == 0 and options.overlap_recompute_profile is not None:
            _write_profile(Path(options.overlap_recompute_profile), profile)
        if planner is None:
            return open_overlap(config, model, device)
        return open_overlap(config, model, device, planner.plan(profile), planner.asked)

    warm_up, measured = profile_iterations(config)
    measuring = MeasuringPlan(
        warm_up=warm_up,
        iterations=measured,
        facts=facts,
        base_bytes=base_bytes,
        settled_bytes=partial(settled_bytes, device),
        follow=follow,
        uses_waits=options.overlap_recompute,
        length=iterations,
        lean=plans,
        delays_weight_gradients=options.overlap_recompute_delay_wgrad,
        again_after=options.overlap_recompute_replan_interval if plans else None,
    )
    stage = parallel_state.get_pipeline_model_parallel_rank()
    return MeasuredStart(measuring, model, device, stage=stage, stages=config.parallel.pipeline_model_parallel_size)


def _write_profile(path: Path, profile: Profile) -> None:
    check_profile(profile, "the measured profile")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, profile)
    logger.info("profile written to %s: %s", path, profile.origin.note)


def open_own_schedule(
    config: PretrainConfig, device: torch.device, waits: "PipelineWaits | None"
) -> AbstractContextManager[Callable[..., list[Any]]]:
    """The pipeline schedules of `megatron.overlap.pipeline`, in place of Megatron-Core's.

    Args:
        config: the options of the run.
        device: where the model lives.
        waits: who may use the waits for other stages.
    """
    from megatron.overlap.pipeline.schedule import PipelineSchedule  # noqa: PLC0415

    timeout = timedelta(minutes=config.distributed.distributed_timeout_minutes)
    return PipelineSchedule(device, waits=waits, timeout=timeout)
