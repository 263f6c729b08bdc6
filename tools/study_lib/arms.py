"""The arms of the study, and what is done for one of them: a split, a plan, a simulation."""

import bisect
import dataclasses
import functools

from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import Split
from overlap_recompute.planner import InfeasibleError, make_plan
from overlap_recompute.planner.comparison import FASTER, STOCK_FULL
from overlap_recompute.planner.partition import best_split
from overlap_recompute.planner.solve import Memory
from overlap_recompute.simulator import SimulationResult, simulate
from overlap_recompute.simulator.variations import with_stock_full_recompute

OURS = "mix+partition"
CHECKMATE = "checkmate"
PARTITIONED = {"adapipe+partition": "adapipe", OURS: "mix"}
"""Arms that search for a split, by the arm of the same planner that takes the even one."""
STOCK_BLOCK = "stock-block"
ARMS = (
    "none", "stock-full", STOCK_BLOCK, "uniform", "block", "selective", "full", "adapipe", "early", "heu", "mix",
    *PARTITIONED,
)  # fmt: skip
"""Simulated everywhere, but partitions only at the fastest micro-batch of the even split and the next larger one.
Checkmate's program, which takes a second a stage, is run at one micro-batch of each place."""


def split_of(profile: Profile, budget_bytes: int, arm: str) -> Split:
    """The even one, or what the arm's search finds."""
    even = profile.layout.split
    if arm not in PARTITIONED or len(even) == 1:
        return even
    return best_split(profile, budget_bytes, planner=FASTER.get(PARTITIONED[arm], PARTITIONED[arm]))


def simulated(
    profile: Profile, arm: str, budget_bytes: int, split: Split, memory: Memory | None = None
) -> SimulationResult:
    """Plan and simulate a planner, or one of Megatron-Core's own settings; one `memory` for a profile and a budget.

    Raises:
        InfeasibleError: it does not fit.
    """
    if arm == STOCK_BLOCK:
        return stock_block(profile, budget_bytes)
    if arm == STOCK_FULL:
        profile, arm = with_stock_full_recompute(profile), "none"
    return simulate(profile, make_plan(profile, arm, budget_bytes, split=split, memory=memory))


def stock_block(profile: Profile, budget_bytes: int) -> SimulationResult:
    """Megatron-Core's `block` as it is: the first k layers of each stage are replayed whole, collectives included, the
    others keep everything; the smallest k that fits.

    Raises:
        InfeasibleError: none does.
    """

    @functools.cache
    def run(count: int) -> SimulationResult:
        return simulated(stock_blocks(profile, count), "none", budget_bytes, profile.layout.split)

    def fits(count: int) -> bool:
        try:
            run(count)
        except InfeasibleError:
            return False
        return True

    # More replayed layers need less memory, so the counts that fit are the last ones.
    most = max(sum(stage) for stage in profile.layout.split)
    return run(bisect.bisect_left(range(most), True, key=fits))


def stock_blocks(profile: Profile, count: int) -> Profile:
    """The profile whose first `count` layers of each stage are Megatron-Core's fully recomputed ones."""
    whole, kinds = with_stock_full_recompute(profile), len(profile.kinds)
    places = [number < count for stage in profile.layout.split for number in range(sum(stage))]
    layers = tuple(kind + kinds * replayed for kind, replayed in zip(profile.layers, places, strict=True))
    return dataclasses.replace(profile, kinds=(*profile.kinds, *whole.kinds), layers=layers)
