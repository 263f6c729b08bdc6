"""All arms at one memory budget: each planner's plan, simulated; what does not fit says why."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from overlap_recompute.plan.errors import ConfigError, UserError
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import Split
from overlap_recompute.planner import InfeasibleError, make_plan
from overlap_recompute.planner.partition import best_split
from overlap_recompute.simulator import SimulationResult, simulate
from overlap_recompute.simulator.variations import with_stock_full_recompute

STOCK_FULL = "stock-full"
PARTITIONED = "+partition"
"""Behind a planner's name: with the split that suits it best."""
ARMS = (
    "none", STOCK_FULL, "full", "selective", "uniform", "block", "checkmate", "adapipe", "early", "heu", "mix",
    "mix" + PARTITIONED,
)  # fmt: skip
"""In the order of a table. `opt` takes longer and is named where it is wanted."""

FASTER = {"mix": "heu", "opt": "heu"}
"""Whose plans price the splits of a search in place of these planners'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One arm; either a plan and its simulation, or the reason why there is none."""

    name: str
    plan: Plan | None
    result: SimulationResult | None
    profile: Profile
    """That the plan was made and simulated with."""
    reason: str = ""
    is_short: bool = False
    """Whether the reason is memory."""


def run_arm(
    profile: Profile, name: str, budget_bytes: int, split: Split | None = None, *, timeline: bool = False
) -> ArmResult:
    """Plan and simulate one arm.

    Args:
        profile: of the model on its hardware.
        name: one of `ARMS`, a planner, or a planner's name with `+partition`.
        budget_bytes: memory of one rank.
        split: layers by stage; None: the profile's.
        timeline: whether the simulation keeps spans and memory over time.
    """
    planner, partitioned = name.removesuffix(PARTITIONED), name.endswith(PARTITIONED)
    if planner == STOCK_FULL:
        profile, planner = with_stock_full_recompute(profile), "none"
    try:
        if partitioned:
            split = best_split(profile, budget_bytes, planner=FASTER.get(planner, planner))
        plan = make_plan(profile, planner=planner, budget_bytes=budget_bytes, split=split)
        result = simulate(profile, plan, timeline=timeline)
    except ConfigError:
        raise
    except UserError as error:
        short = isinstance(error, InfeasibleError)
        return ArmResult(name=name, plan=None, result=None, profile=profile, reason=str(error), is_short=short)
    return ArmResult(name=name, plan=dataclasses.replace(plan, planner=name), result=result, profile=profile)


def run_arms(
    profile: Profile,
    names: Iterable[str],
    budget_bytes: int,
    split: Split | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[ArmResult, ...]:
    """Every arm in order; `progress` is told each name before its turn."""
    results = []
    for name in names:
        progress(name)
        results.append(run_arm(profile, name, budget_bytes, split))
    return tuple(results)
