"""Many configurations at once, and how a gain depends on links and devices."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overlap_recompute.plan.device import planned_bytes
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.profile import Profile
from overlap_recompute.planner.comparison import ArmResult, run_arm
from overlap_recompute.simulator import simulate
from overlap_recompute.simulator.analytic_options import profile_from_options
from overlap_recompute.simulator.hardware_file import hardware_from
from overlap_recompute.simulator.variations import varied


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is swept: every combination that fits together."""

    models: tuple[str, ...]
    hardware: tuple[str, ...]
    gpus: int
    """Of the job; what tensor and pipeline parallelism leave is data parallelism."""
    tensor_parallel: tuple[int, ...]
    pipeline_parallel: tuple[int, ...]
    micro_batch: tuple[int, ...]
    global_batch: int
    """Sequences of an iteration."""
    sequence: int | None
    arms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One configuration with one arm."""

    model: str
    hardware: str
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    micro_batch: int
    microbatches: int
    arm: ArmResult


def sweep(grid: Grid) -> Iterator[Point]:
    """Every combination and arm, in order; combinations that cannot be are left out.

    Raises:
        ConfigError: an unknown model, or nothing that could be.
        HardwareError: unknown hardware.
    """
    sizes = list(_layouts(grid))
    if not sizes:
        raise ConfigError(
            f"{grid.gpus} GPUs and a batch of {grid.global_batch}",
            "parallel sizes whose product divides the GPUs, and a micro-batch that divides the rest of the batch",
            "correct --gpus, --global-batch or the sizes",
        )
    for model, hardware in itertools.product(grid.models, grid.hardware):
        budget_bytes = planned_bytes(hardware_from(hardware).memory_bytes)
        for tensor, pipeline, micro in sizes:
            data = grid.gpus // (tensor * pipeline)
            try:
                profile = _profile(grid, model, hardware, (tensor, pipeline, micro))
            except ConfigError as error:
                if "--model" in str(error):
                    raise
                continue  # heads or layers that cannot be shared so
            for name in grid.arms:
                yield Point(
                    model=model,
                    hardware=hardware,
                    tensor_parallel=tensor,
                    pipeline_parallel=pipeline,
                    data_parallel=data,
                    micro_batch=micro,
                    microbatches=grid.global_batch // (data * micro),
                    arm=run_arm(profile, name, budget_bytes),
                )


def refusal(grid: Grid, model: str, hardware: str) -> str:
    """Why the first layout of a model is none, for a model of which no layout is one."""
    for sizes in _layouts(grid):
        try:
            _profile(grid, model, hardware, sizes)
        except ConfigError as error:
            return f"found {error.found}; expected {error.expected}"
    return ""


def _profile(grid: Grid, model: str, hardware: str, sizes: tuple[int, int, int]) -> Profile:
    tensor, pipeline, micro = sizes
    data = grid.gpus // (tensor * pipeline)
    return profile_from_options(
        model=model, hardware=hardware, tensor_parallel=tensor, pipeline_parallel=pipeline, data_parallel=data,
        micro_batch=micro, microbatches=grid.global_batch // (data * micro), sequence=grid.sequence,
    )  # fmt: skip


def count(grid: Grid) -> int:
    """Points at most, for a progress bar."""
    return len(list(_layouts(grid))) * len(grid.models) * len(grid.hardware) * len(grid.arms)


def _layouts(grid: Grid) -> Iterator[tuple[int, int, int]]:
    for tensor, pipeline, micro in itertools.product(grid.tensor_parallel, grid.pipeline_parallel, grid.micro_batch):
        data, rest = divmod(grid.gpus, tensor * pipeline)
        if data >= 1 and rest == 0 and grid.global_batch % (data * micro) == 0:
            yield tensor, pipeline, micro


FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What happens when one property of the hardware is another."""

    what: str
    """bandwidth, latency or compute."""
    factor: float
    """Of the property of the profile."""
    gain: float
    """Throughput of the plan made for it over that of the same units on demand; 1: the gain has vanished."""
    stale_gain: float
    """The same with the plan made for the profile as it is: how wrong may a profile be."""


def sensitivity(
    profile: Profile, planner: str, baseline: str, budget_bytes: int, factors: Sequence[float] = FACTORS
) -> Iterator[Sensitivity]:
    """How the gain over a baseline depends on bandwidth, latency and compute speed.

    Args:
        profile: of the hardware as it is.
        planner: whose plan is looked at.
        baseline: an arm, such as `full`.
        budget_bytes: memory of one rank.
        factors: by which each property is changed.

    Raises:
        ConfigError: planner or baseline does not fit into the memory.
    """
    stale = run_arm(profile, planner, budget_bytes)
    for what in ("bandwidth", "latency", "compute"):
        for factor in factors:
            other = varied(profile, **{what: factor})
            ours, base = run_arm(other, planner, budget_bytes), run_arm(other, baseline, budget_bytes)
            if ours.result is None or base.result is None or stale.plan is None:
                reason = (ours.reason or base.reason).removeprefix("found ").partition("; expected ")[0]
                raise ConfigError(reason, f"a memory in which {planner} and {baseline} fit", "give a rank more memory")
            late = simulate(other, stale.plan)
            base_us = base.result.iteration_us
            yield Sensitivity(
                what=what,
                factor=factor,
                gain=base_us / ours.result.iteration_us,
                stale_gain=base_us / late.iteration_us,
            )
