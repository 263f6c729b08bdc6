"""A plan from a policy that the user wrote (`--overlap-recompute-policy`), so that it can be simulated and compared."""

import datetime
from collections.abc import Collection

from overlap_recompute.plan.memory import stage_memory
from overlap_recompute.plan.plan_file import PLAN_VERSION, LayerPlan, Plan, StagePlan, StagePrediction
from overlap_recompute.plan.policy_text import Drop, parse_policy
from overlap_recompute.plan.profile import Layout, Profile
from overlap_recompute.plan.split import layers_of
from overlap_recompute.plan.storages import brought_back_bytes_of
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.schedules import in_flight_microbatches, pipeline_schedule

ALL_WINDOWS = tuple(kind.value for kind in WindowKind)
LAYERS_AHEAD = 2
"""The runtime's cap when nobody gives one: what so many layers drop."""


def plan_of_policy(
    profile: Profile,
    text: str,
    layout: Layout | None = None,
    *,
    window_kinds: Collection[str] = ALL_WINDOWS,
    prefetch_cap_bytes: int | None = None,
) -> Plan:
    """The plan that a run with this policy carries out; its predictions are those of memory alone.

    Args:
        profile: of the model.
        text: the policy (docs/overlap.md).
        layout: of the run; None: the profile's.
        window_kinds: waits that are filled; `on-demand` fills none.
        prefetch_cap_bytes: None for the runtime's own choice.

    Raises:
        ConfigError: the policy cannot be read, or names what cannot be dropped.
    """
    layout = layout or profile.layout
    policy = parse_policy(text, len(layout.split), flag="--policy")
    filled = () if policy.on_demand else tuple(kind for kind in ALL_WINDOWS if kind in window_kinds)
    stages = [
        _stage(profile, layout, number, drop, filled, prefetch_cap_bytes) for number, drop in enumerate(policy.stages)
    ]
    return Plan(
        version=PLAN_VERSION,
        planner=f"policy {text}",
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        model_fingerprint=profile.model_fingerprint,
        layout=layout,
        software=profile.origin.software,
        budget_bytes=max(stage.predicted.memory.total_bytes for stage in stages),
        predicted_iteration_us=0.0,
        stages=tuple(stages),
    )


def _stage(
    profile: Profile, layout: Layout, number: int, drop: Drop, filled: tuple[str, ...], prefetch_cap_bytes: int | None
) -> StagePlan:
    layers = tuple(
        LayerPlan(layer=layer, chunk=chunk, dropped=_dropped(profile, layer, drop))
        for chunk, indices in enumerate(layers_of(layout.split)[number])
        for layer in indices
    )
    row = pipeline_schedule(len(layout.split), layout.chunks, layout.microbatches)[number]
    in_flight = in_flight_microbatches(row).peak_by_chunk
    cap_bytes = _cap_bytes(profile, layers) if prefetch_cap_bytes is None else prefetch_cap_bytes
    cap_bytes = cap_bytes if filled else 0
    dropped = {entry.layer: frozenset(entry.dropped) for entry in layers}
    memory = stage_memory(profile, layout.split, number, dropped, in_flight, prefetch_cap_bytes=cap_bytes)
    return StagePlan(
        stage=number,
        layers=layers,
        window_kinds=filled,
        prefetch_cap_bytes=cap_bytes,
        fills=(),
        predicted=StagePrediction(
            forward_us=0.0, backward_us=0.0, recompute_us=0.0, exposed_us=0.0, in_flight=in_flight, memory=memory
        ),
    )


def _dropped(profile: Profile, layer: int, drop: Drop) -> tuple[str, ...]:
    units = profile.kind_of(layer).units
    return tuple(unit.name for unit in units if unit.name in drop.units and unit.refusal is None)


def _cap_bytes(profile: Profile, layers: Collection[LayerPlan]) -> int:
    return LAYERS_AHEAD * max(
        (brought_back_bytes_of(profile.kind_of(each.layer).storages, set(each.dropped)) for each in layers), default=0
    )
