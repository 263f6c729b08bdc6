"""Times of one stage's passes in the steady state, without the rest of the pipeline: what planners go by."""

from collections.abc import Iterable
from dataclasses import dataclass

from overlap_recompute.plan.actions import Kind
from overlap_recompute.plan.plan_file import StagePlan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import Split
from overlap_recompute.simulator.engine import Run
from overlap_recompute.simulator.lists import passes_of
from overlap_recompute.simulator.passes import PP_WAIT, Passes
from overlap_recompute.simulator.stage_model import build_stage, to_fs, to_us
from overlap_recompute.simulator.stage_run import Done, StageRun
from overlap_recompute.simulator.steady import find_period

_FILLINGS = (4, 8, 16)
"""Of the pipeline, within which a steady state is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Of one microbatch through all chunks of a stage, in the steady state."""

    forward_us: float
    """Forward passes and their windows, without any recompute."""
    backward_us: float
    """The same of backward passes."""
    hidden_us: float
    """Recompute in windows; in waits for other stages too, if a wait was given."""
    exposed_us: float
    """Recompute on demand, and what outlived its window."""

    @property
    def recompute_us(self) -> float:
        """Hidden and exposed."""
        return self.hidden_us + self.exposed_us

    @property
    def stage_us(self) -> float:
        """How long the stage is busy for one microbatch."""
        return self.forward_us + self.backward_us + self.exposed_us


def pass_times(profile: Profile, split: Split, plan: StagePlan, *, wait_us: float = 0.0) -> PassTimes:
    """How long one stage needs for a microbatch when forward and backward passes take turns.

    Args:
        profile: costs.
        split: layers of all stages; says where the stage lies and how many microbatches are in flight.
        plan: decisions of the stage.
        wait_us: how long it waits for the gradient before each backward pass; recomputes meanwhile if the plan says so.

    Raises:
        ConfigError: there is no schedule for these sizes.
    """
    passes = Passes(build_stage(profile, split, plan))
    stages, chunks = len(split), len(split[0])
    unit = stages if chunks > 1 else 1
    for microbatches in _tries(stages, chunks, plan.stage):
        done = _run(passes, stages, chunks, microbatches, to_fs(wait_us))
        period = find_period(Run((done,), []), unit, chunks)
        if period is not None:
            return _times(period.done[0], period.microbatches)
    return _times(done, microbatches)


def _tries(stages: int, chunks: int, stage: int) -> list[int]:
    """Microbatches with which a steady state is looked for, one number after the other."""
    if chunks > 1:
        return [fillings * stages for fillings in _FILLINGS]
    # A stage with few microbatches in flight settles soon.
    return [3 * (stages - stage) + 6, *(fillings * stages + 8 for fillings in _FILLINGS)]


def _run(passes: Passes, stages: int, chunks: int, microbatches: int, wait_fs: int) -> list[Done]:
    row = passes_of(stages, chunks, microbatches)[passes.stage.number]
    stage = StageRun(passes, row)
    for action in row:
        if action.kind is Kind.F:
            stage.forward(action)
            continue
        if wait_fs and PP_WAIT in passes.stage.filled_kinds:
            stage.recompute(action.as_kind(Kind.R))
            stage.wait(action.as_kind(Kind.WAIT_RECV_B), stage.now_fs + wait_fs)
        stage.backward(action)
    return stage.done


def _times(rows: Iterable[Done], microbatches: int) -> PassTimes:
    lengths_fs = dict.fromkeys((Kind.F, Kind.B), 0)
    hidden_fs = exposed_fs = 0
    for done in rows:
        if done.outcome is None:
            continue
        hidden_fs += done.outcome.hidden_fs
        exposed_fs += done.outcome.exposed_fs
        if done.action.kind in lengths_fs:
            lengths_fs[done.action.kind] += done.outcome.length_fs - done.outcome.exposed_fs
    return PassTimes(
        forward_us=to_us(lengths_fs[Kind.F]) / microbatches,
        backward_us=to_us(lengths_fs[Kind.B]) / microbatches,
        hidden_us=to_us(hidden_fs) / microbatches,
        exposed_us=to_us(exposed_fs) / microbatches,
    )
