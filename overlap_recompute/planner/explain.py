"""Why a plan is as it is: what binds each stage, what each unit would cost otherwise, what memory is worth."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from overlap_recompute.plan.memory import stage_memory
from overlap_recompute.plan.plan_file import FORWARD_WAIT, PIPELINE_WINDOW, Plan, StagePlan
from overlap_recompute.plan.profile import COMPUTE, Profile
from overlap_recompute.planner.plan import make_plan
from overlap_recompute.planner.waits import predicted_waits
from overlap_recompute.simulator import pass_times

MEMORY, NOTHING = "memory", "nothing"
GIB = 1 << 30
_NEGLIGIBLE_US = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFacts:
    """A unit of a layer, as it is and the other way round."""

    layer: int
    unit: str
    dropped: bool
    replay_us: float
    flipped_bytes: int
    """Memory of the stage with the decision turned over, less what it is now; below 0: turning over frees memory."""
    flipped_exposed_us: float
    """Exposed recompute of the stage per microbatch with the decision turned over, less what it is now."""
    fits_flipped: bool
    """Whether the stage would stay within the budget."""
    window: str
    """Where the plan expects its replay; empty: on demand, or kept."""

    @property
    def reason(self) -> str:
        """One sentence."""
        if self.dropped and not self.fits_flipped:
            return "recomputed: keeping it does not fit into the budget"
        if self.dropped and self.flipped_exposed_us >= -_NEGLIGIBLE_US:
            return "recomputed: a window hides its replay, keeping it would gain nothing"
        if self.dropped:
            return "recomputed: keeping it would fit alone, but its memory serves better elsewhere"
        if self.flipped_exposed_us <= _NEGLIGIBLE_US:
            return "kept: dropping it would cost nothing, and its memory is not needed"
        return "kept: its replay would be exposed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """What binds a stage."""

    stage: int
    binding: str
    """`memory`: another unit would be kept if it fitted; `nothing`: no recompute is exposed."""
    slack_bytes: int
    """Of the budget that is left."""
    exposed_us: float
    hidden_us: float
    """Of a microbatch in the steady state."""
    windows: tuple[tuple[str, float, float], ...]
    """(name, length in us, planned replays in us) of every window of the backward passes and those that are filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPrice:
    """What more memory would buy."""

    more_bytes: int
    iteration_us: float
    """Predicted with it."""
    saved_us: float
    """Of an iteration."""


def stage_facts(profile: Profile, plan: Plan, stage: int) -> StageFacts:
    """What binds one stage of a plan."""
    chosen = plan.stages[stage]
    exposed_us = chosen.predicted.exposed_us
    return StageFacts(
        stage=stage,
        binding=MEMORY if exposed_us > _NEGLIGIBLE_US else NOTHING,
        slack_bytes=plan.budget_bytes - chosen.predicted.memory.total_bytes,
        exposed_us=exposed_us,
        hidden_us=chosen.predicted.recompute_us - exposed_us,
        windows=tuple(_window_use(profile, chosen, predicted_waits(profile, plan)[stage].length_us)),
    )


def unit_facts(profile: Profile, plan: Plan, layer: int) -> tuple[UnitFacts, ...]:
    """Every unit of a layer that could be dropped, as it is and the other way round."""
    stage = next(stage for stage in plan.stages for entry in stage.layers if entry.layer == layer)
    dropped = {entry.layer: frozenset(entry.dropped) for entry in stage.layers}
    now_bytes = _total_bytes(profile, plan, stage, dropped)
    now_us = _exposed_us(profile, plan, stage, dropped)
    places = {(fill.layer, fill.unit): fill.window for fill in stage.fills}
    facts = []
    for unit in profile.kind_of(layer).units:
        if unit.refusal is not None:
            continue
        flipped = {**dropped, layer: dropped[layer] ^ {unit.name}}
        nbytes = _total_bytes(profile, plan, stage, flipped)
        facts.append(
            UnitFacts(
                layer=layer,
                unit=unit.name,
                dropped=unit.name in dropped[layer],
                replay_us=unit.forward_us,
                flipped_bytes=nbytes - now_bytes,
                flipped_exposed_us=_exposed_us(profile, plan, stage, flipped) - now_us,
                fits_flipped=nbytes <= plan.budget_bytes,
                window=places.get((layer, unit.name), ""),
            )
        )
    return tuple(facts)


def price_of_memory(profile: Profile, plan: Plan, more_bytes: int = GIB) -> MemoryPrice:
    """What the same planner would do with more memory on every rank, for the same split."""
    richer = make_plan(
        profile,
        planner=plan.planner,
        budget_bytes=plan.budget_bytes + more_bytes,
        split=plan.layout.split,
        microbatches=plan.layout.microbatches,
    )
    iteration_us = min(richer.predicted_iteration_us, plan.predicted_iteration_us)
    return MemoryPrice(
        more_bytes=more_bytes, iteration_us=iteration_us, saved_us=plan.predicted_iteration_us - iteration_us
    )


def _window_use(profile: Profile, stage: StagePlan, wait_us: float) -> Iterator[tuple[str, float, float]]:
    filled: dict[str, float] = {}
    for fill in stage.fills:
        units = {unit.name: unit.forward_us for unit in profile.kind_of(fill.layer).units}
        filled[fill.window] = filled.get(fill.window, 0.0) + units[fill.unit]
    for entry in reversed(stage.layers):
        number = 0
        for step in profile.kind_of(entry.layer).backward:
            if step.kind != COMPUTE:
                name = f"B{entry.layer}.{number}"
                number += 1
                yield name, step.duration_us, filled.pop(name, 0.0)
    for name, used_us in filled.items():
        yield name, wait_us if name in (PIPELINE_WINDOW, FORWARD_WAIT) else 0.0, used_us


def _total_bytes(profile: Profile, plan: Plan, stage: StagePlan, dropped: dict[int, frozenset[str]]) -> int:
    return stage_memory(
        profile,
        plan.layout.split,
        stage.stage,
        dropped,
        stage.predicted.in_flight,
        prefetch_cap_bytes=stage.prefetch_cap_bytes,
    ).total_bytes


def _exposed_us(profile: Profile, plan: Plan, stage: StagePlan, dropped: dict[int, frozenset[str]]) -> float:
    layers = tuple(
        dataclasses.replace(
            entry,
            dropped=tuple(
                unit.name for unit in profile.kind_of(entry.layer).units if unit.name in dropped[entry.layer]
            ),
        )
        for entry in stage.layers
    )
    flipped = dataclasses.replace(stage, layers=layers, fills=())
    wait_us = predicted_waits(profile, plan)[stage.stage].length_us
    return pass_times(profile, plan.layout.split, flipped, wait_us=wait_us).exposed_us
