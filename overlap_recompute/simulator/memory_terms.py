"""The terms of the memory model (`overlap_recompute.plan.memory`) that the simulator follows over time."""

from collections.abc import Sequence

from overlap_recompute.plan.memory import kept_bytes_by_chunk, stage_memory
from overlap_recompute.plan.plan_file import MemoryTable, Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.simulator.occupancy import StageBytes


def table_of_stage(profile: Profile, plan: Plan, stage: int, in_flight: Sequence[int]) -> MemoryTable:
    """What the memory model says of a stage of a plan with so many microbatches in flight, by chunk."""
    cap_bytes = plan.stages[stage].prefetch_cap_bytes
    dropped = _dropped(plan, stage)
    return stage_memory(profile, plan.layout.split, stage, dropped, in_flight, prefetch_cap_bytes=cap_bytes)


def terms_of_stage(profile: Profile, plan: Plan, stage: int, in_flight: Sequence[int]) -> StageBytes:
    """The terms by when they are there; arguments as `table_of_stage`."""
    table = table_of_stage(profile, plan, stage, in_flight)
    passing = table.kept_bytes + table.prefetched_bytes + table.working_set_bytes + table.head_bytes
    return StageBytes(
        fixed_bytes=table.total_bytes - passing,
        kept_bytes=kept_bytes_by_chunk(profile, plan.layout.split, stage, _dropped(plan, stage)),
        working_bytes=table.working_set_bytes + table.head_bytes,
        cap_bytes=table.prefetched_bytes,
    )


def _dropped(plan: Plan, stage: int) -> dict[int, frozenset[str]]:
    return {entry.layer: frozenset(entry.dropped) for entry in plan.stages[stage].layers}
