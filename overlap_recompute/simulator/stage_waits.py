"""How long the stages of a plan wait for each other in front of each chunk's backward passes, as simulated."""

from collections import defaultdict
from collections.abc import Iterable

from overlap_recompute.plan.actions import WAITS_FOR_RECEIVE, Kind
from overlap_recompute.plan.plan_file import FORWARD_WAIT, PIPELINE_WINDOW, Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.simulator.simulate import executed
from overlap_recompute.simulator.stage_model import to_us
from overlap_recompute.simulator.stage_run import Done

StageWaits = dict[tuple[int, str], float]
"""Mean length by chunk and name of the window: `PIPELINE_WINDOW` right before its backward pass, `FORWARD_WAIT` before
the forward pass that comes right before that one. Waits that never are are left out."""


def waits_by_chunk(profile: Profile, plan: Plan) -> tuple[StageWaits, ...]:
    """For each stage, in the steady state if there is one; what is recomputed in a wait is part of it.

    Raises:
        FileError, ConfigError: as `simulate`.
    """
    extrapolated = executed(profile, plan)
    rows = extrapolated.run.done if extrapolated.period is None else extrapolated.period.done
    return tuple(_waits(stage) for stage in rows)


def _waits(rows: Iterable[Done]) -> StageWaits:
    sums_fs, counts = defaultdict[tuple[int, str], int](int), defaultdict[int, int](int)
    now_fs, before_forward_fs = 0, 0
    for done in rows:
        chunk = done.action.chunk
        if done.action.kind in WAITS_FOR_RECEIVE:
            now_fs += max(0, done.arrival_fs - done.begin_fs)
        elif done.action.kind is Kind.F:
            now_fs, before_forward_fs = 0, now_fs
        elif done.action.kind is Kind.B:
            counts[chunk] += 1
            sums_fs[chunk, PIPELINE_WINDOW] += now_fs
            sums_fs[chunk, FORWARD_WAIT] += before_forward_fs
            now_fs = before_forward_fs = 0
    return {key: to_us(length_fs) / counts[key[0]] for key, length_fs in sums_fs.items() if length_fs}
