"""How long the stages of a pipeline wait for each other.

NOTE [ the pace of a pipeline ]
In the steady state the slowest stage sets the pace T, its time for a microbatch; or a round trip does: stage s of p has
p - s microbatches on their way to the last stage and back, so T is no less than the time of all of these stages and of
2 (p - 1 - s) transfers, divided by p - s. A stage that works W and exposes E waits T - W - E: for the next stage's
gradient if it lies ahead of the one that sets the pace, or sets it by a round trip; for the previous stage's output if
it lies behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import SEND, Profile
from overlap_recompute.plan.split import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Of a stage in the steady state, for one microbatch."""

    length_us: float
    before_forward: bool
    """For the previous stage's output; else for the next one's gradient."""


def waits_of(times_us: Sequence[float], transfer_us: float = 0.0) -> list[Wait]:
    """Waits of stages that need so long for a microbatch; see the NOTE."""
    pace_us, leader = pace_of(times_us, transfer_us)
    return [
        Wait(length_us=max(0.0, pace_us - time_us), before_forward=stage > leader)
        for stage, time_us in enumerate(times_us)
    ]


class Pace(NamedTuple):
    """Of a pipeline in the steady state."""

    pace_us: float
    """From one microbatch to the next."""
    leader: int
    """The stage that sets it, by its own time or by the round trip behind it."""


def pace_of(times_us: Sequence[float], transfer_us: float = 0.0) -> Pace:
    """The pace of stages; see the NOTE.

    Args:
        times_us: of each stage for a microbatch.
        transfer_us: of a tensor from one stage to the next.
    """
    paces_us = [
        max(time_us, (sum(times_us[stage:]) + 2 * (len(times_us) - 1 - stage) * transfer_us) / (len(times_us) - stage))
        for stage, time_us in enumerate(times_us)
    ]
    leader = max(range(len(paces_us)), key=lambda stage: (paces_us[stage], times_us[stage] == paces_us[stage]))
    return Pace(paces_us[leader], leader)


def transfer_us(profile: Profile, split: Split) -> float:
    """Of a tensor between stages; 0 where round trips set no pace: one stage, or several chunks on each."""
    if len(split) == 1 or len(split[0]) > 1:
        return 0.0
    link = profile.link(SEND)
    return 0.0 if link is None else link.duration_us(profile.boundary_bytes)


def predicted_waits(profile: Profile, plan: Plan) -> list[Wait]:
    """The same for a finished plan."""
    predicted = [stage.predicted for stage in plan.stages]
    times_us = [each.forward_us + each.backward_us + each.exposed_us for each in predicted]
    return waits_of(times_us, transfer_us(profile, plan.layout.split))
