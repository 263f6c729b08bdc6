"""The ways to run a stage, in turns on one model: no recompute, stock full, the same units on demand, overlapped."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from megatron.overlap.figures import StepFigures
from megatron.overlap.measuring.clocks import Clock
from megatron.overlap.session import OverlapSession
from megatron.overlap.settings import OverlapSettings
from megatron.pretrain.distributed.seeds import seed_everything
from overlap_recompute.plan.layer_units import LAYER_UNITS
from overlap_recompute.plan.policy_text import Drop
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime.live_bytes import LiveBytes
from tools.stage_bench_lib.collectives import EmulatedCollectives
from tools.stage_bench_lib.energy import Energy, Meter, metered
from tools.stage_bench_lib.stage import ForwardStep, Stage, StepTimes

NONE, STOCK_FULL, ON_DEMAND, OVERLAPPED = "none", "stock full", "same units, on demand", "overlapped"
ARMS = (NONE, STOCK_FULL, ON_DEMAND, OVERLAPPED)
WARM_UP_STEPS = 3
"""Of every turn: a session learns from the first two how much it may bring back, and how long windows are."""
Around = Callable[[], Any]


@dataclass(slots=True, kw_only=True)
class Samples:
    """What was seen of one arm."""

    times: list[StepTimes] = field(default_factory=list)
    figures: list[StepFigures] = field(default_factory=list)
    """Of the session, one for each counted step; none for arms without it."""
    peak_bytes: int = 0
    """Most that was allocated at a time, weights and gradients included, without the emulation's own buffers."""
    before_bytes: int = 0
    """Allocated before the step whose peak was taken."""
    digest: str = ""
    """Of the gradients of a step."""
    energy: Energy = field(default_factory=Energy)
    """Of the counted steps, where the device counts it."""


@contextmanager
def arm_of(name: str, stage: Stage) -> Iterator[tuple[ForwardStep, Around, OverlapSession | None]]:
    """An arm on a stage's model: its forward step, the context around a step, and its session if it has one."""
    if name == NONE:
        yield stage.forward_step, _nothing, None
    elif name == STOCK_FULL:
        with _stock_full(stage.transformer_config):
            yield stage.forward_step, _nothing, None
    else:
        fills = frozenset(WindowKind) if name == OVERLAPPED else frozenset[WindowKind]()
        with OverlapSession(_settings(stage, fills), [stage.model]) as session:
            yield session.forward_step(stage.forward_step), session.step, session


def _settings(stage: Stage, fills: frozenset[WindowKind]) -> OverlapSettings:
    return OverlapSettings(
        rank=stage.config.world.rank,
        stage=stage.stage,
        stages=stage.stages,
        microbatches=stage.microbatches,
        drop=Drop(units=LAYER_UNITS, by_name=False),
        fills=fills,
        prefetch_cap_bytes=None,
        verify=False,
        trace_folder=None,
        # Ranks compare checksums of their flags. There is one rank; that of no text is 0, as the absent ones' is.
        flags="",
        device=stage.device,
    )


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _stock_full(transformer_config: Any) -> Iterator[None]:
    """megatron/core/transformer/transformer_block.py reads these at each forward pass."""
    names = ("recompute_granularity", "recompute_method", "recompute_num_layers")
    before = {name: getattr(transformer_config, name) for name in names}
    try:
        for name, value in zip(names, ("full", "uniform", 1), strict=True):
            setattr(transformer_config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(transformer_config, name, value)


def run_turn(
    name: str,
    stage: Stage,
    collectives: EmulatedCollectives,
    clock: Clock,
    samples: Samples,
    *,
    iterations: int,
    meter: Meter | None = None,
) -> None:
    """One turn of an arm: uncounted steps, a step whose peak is taken, one whose gradients are, counted ones.

    Args:
        name: of the arm.
        stage: to run.
        collectives: of its link.
        clock: of its device.
        samples: to add to.
        iterations: counted steps.
        meter: of the device's energy, if it has one.
    """
    with arm_of(name, stage) as (forward_step, around, session):

        def step() -> StepTimes:
            with around():
                collectives.active = True
                try:
                    return stage.step(forward_step, clock)
                finally:
                    collectives.active = False

        for _ in range(WARM_UP_STEPS):
            step()
        _take_peak(step, stage, samples)
        with _reproducible(stage.device):
            seed_everything(stage.config.training.seed)  # dropout draws the same in every arm
            step()
            samples.digest = stage.gradient_digest()
        if session is not None:
            # The session's own figures are means over ranks, of which there is one here.
            session.figures = _Steps(samples.figures)  # type: ignore[assignment]
        with metered(meter, stage.device, iterations, samples.energy):
            for _ in range(iterations):
                samples.times.append(step())


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Flash attention's backward pass adds up in any order on a GPU unless told otherwise: two runs of one arm would
    differ already. Where times are taken it may."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


class _Steps:
    """Keeps the figures of every step."""

    def __init__(self, steps: list[StepFigures]) -> None:
        self.add = steps.append


def _take_peak(step: Callable[[], object], stage: Stage, samples: Samples) -> None:
    device = stage.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        samples.before_bytes = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        samples.peak_bytes = max(samples.peak_bytes, torch.cuda.max_memory_allocated(device))
        return
    with LiveBytes() as live:
        for tensor in stage.static_tensors():
            live.record(tensor.untyped_storage())  # was there before: not made by the step
        step()
    samples.before_bytes = stage.static_bytes
    samples.peak_bytes = max(samples.peak_bytes, stage.static_bytes + live.peak_bytes)


def middle_us(values: Sequence[float]) -> float:
    """The median; 0 of nothing."""
    return statistics.median(values) if values else 0.0
