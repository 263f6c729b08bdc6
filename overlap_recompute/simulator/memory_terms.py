"""The terms of the memory model (`overlap_recompute.plan.memory`) that the simulator follows over time."""

from collections.abc import Sequence

from overlap_recompute.plan.memory import stage_memory
from overlap_recompute.plan.plan_file import MemoryTable, Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.simulator.occupancy import StageBytes


def table_of_stage(profile: Profile, plan: Plan, stage: int, in_flight: Sequence[int]) -> MemoryTable:
    """What the memory model says of a stage of a plan with so many microbatches in flight, by chunk."""
    chosen = plan.stages[stage]
    dropped = {entry.layer: frozenset(entry.dropped) for entry in chosen.layers}
    cap_bytes = chosen.prefetch_cap_bytes
    return stage_memory(profile, plan.layout.split, stage, dropped, in_flight, prefetch_cap_bytes=cap_bytes)


def terms_of_stage(profile: Profile, plan: Plan, stage: int, in_flight: Sequence[int]) -> StageBytes:
    """The terms by when they are there; arguments as `table_of_stage`."""
    table = table_of_stage(profile, plan, stage, in_flight)
    chunks = range(len(in_flight))
    alone = [[int(chunk == other) for other in chunks] for chunk in chunks]
    passing = table.kept_bytes + table.prefetched_bytes + table.working_set_bytes + table.head_bytes
    return StageBytes(
        fixed_bytes=table.total_bytes - passing,
        kept_bytes=tuple(table_of_stage(profile, plan, stage, one).kept_bytes for one in alone),
        working_bytes=table.working_set_bytes + table.head_bytes,
        cap_bytes=table.prefetched_bytes,
    )
