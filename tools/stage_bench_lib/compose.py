"""The pipeline of all stages, simulated from a profile: every stage runs the same arm."""

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime

from overlap_recompute.plan.memory import stage_memory
from overlap_recompute.plan.plan_file import PLAN_VERSION, LayerPlan, Plan, StagePlan, StagePrediction
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import layers_of
from overlap_recompute.plan.storages import brought_back_bytes_of
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.schedules import in_flight_microbatches, pipeline_schedule
from overlap_recompute.simulator import PassTimes, SimulationResult, pass_times, simulate
from overlap_recompute.simulator.variations import with_stock_full_recompute
from tools.stage_bench_lib.arms import NONE, OVERLAPPED, STOCK_FULL

LAYERS_AHEAD = 2
"""As the runtime has it without a cap of the user's."""
WITHIN_PASSES = tuple(kind.value for kind in WindowKind if kind is not WindowKind.PP_WAIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """An arm on all stages."""

    result: SimulationResult
    stage: PassTimes
    """What the same model says of the stage that was measured, run as it was measured: without neighbours."""


def compose(profile: Profile, arm: str, measured: Profile, stage: int) -> Composed:
    """Simulate an iteration.

    Args:
        profile: of the whole model.
        arm: which every stage runs.
        measured: of as many layers as the measured stage had.
        stage: which one it was.
    """
    if arm == STOCK_FULL:
        profile, measured = with_stock_full_recompute(profile), with_stock_full_recompute(measured)
    alone = plan_of(measured, arm, WITHIN_PASSES).stages[stage]
    return Composed(
        result=simulate(profile, plan_of(profile, arm, tuple(kind.value for kind in WindowKind))),
        stage=pass_times(measured, measured.layout.split, alone),
    )


def dropped_units(profile: Profile, arm: str) -> dict[int, frozenset[str]]:
    """By layer: what the arm drops, which is all that can be."""
    if arm in (NONE, STOCK_FULL):
        return {}
    return {
        layer: frozenset(unit.name for unit in profile.kind_of(layer).units if unit.refusal is None)
        for layer in range(len(profile.layers))
    }


def cap_bytes(profile: Profile, arm: str) -> int:
    """Most that the arm brings back ahead of need."""
    dropped = dropped_units(profile, arm)
    if arm != OVERLAPPED:
        return 0
    brought = (brought_back_bytes_of(profile.kind_of(layer).storages, units) for layer, units in dropped.items())
    return LAYERS_AHEAD * max(brought, default=0)


def plan_of(profile: Profile, arm: str, windows: tuple[str, ...]) -> Plan:
    """The arm as a plan.

    Args:
        profile: of the model.
        arm: one of `ARMS`; of stock full recompute, `profile` has the costs.
        windows: kinds that the overlapped arm fills.
    """
    layout = profile.layout
    stages = tuple(_stage(profile, arm, windows, stage) for stage in range(len(layout.split)))
    return Plan(
        version=PLAN_VERSION,
        planner=arm,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model_fingerprint=profile.model_fingerprint,
        layout=layout,
        software=profile.origin.software,
        budget_bytes=max(stage.predicted.memory.total_bytes for stage in stages),
        predicted_iteration_us=0.0,
        stages=stages,
    )


def _stage(profile: Profile, arm: str, windows: tuple[str, ...], stage: int) -> StagePlan:
    dropped, cap = dropped_units(profile, arm), cap_bytes(profile, arm)
    layout = profile.layout
    row = pipeline_schedule(len(layout.split), 1, layout.microbatches)[stage]
    in_flight = in_flight_microbatches(row).peak_by_chunk
    memory = stage_memory(profile, layout.split, stage, dropped, in_flight, prefetch_cap_bytes=cap)
    layers = tuple(
        LayerPlan(
            layer=layer,
            chunk=0,
            dropped=tuple(unit.name for unit in profile.kind_of(layer).units if unit.name in dropped.get(layer, ())),
        )
        for layer in layers_of(layout.split)[stage][0]
    )
    plan = StagePlan(
        stage=stage,
        layers=layers,
        window_kinds=windows if arm == OVERLAPPED else (),
        prefetch_cap_bytes=cap,
        fills=(),
        predicted=StagePrediction(
            forward_us=0.0, backward_us=0.0, recompute_us=0.0, exposed_us=0.0, in_flight=tuple(in_flight), memory=memory
        ),
    )
    times = pass_times(profile, layout.split, plan)
    predicted = dataclasses.replace(
        plan.predicted,
        forward_us=times.forward_us,
        backward_us=times.backward_us,
        recompute_us=times.recompute_us,
        exposed_us=times.exposed_us,
    )
    return dataclasses.replace(plan, predicted=predicted)
