"""Layouts and schedules for property tests."""

from dataclasses import dataclass

from hypothesis import strategies as st

from overlap_recompute.plan.actions import Grid
from overlap_recompute.schedules import PipelineShape, pipeline_schedule, with_communication


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Arguments of a builder."""

    pp: int
    vpp: int
    microbatches: int
    group_size: int | None
    forward_only: bool

    @property
    def shape(self) -> PipelineShape:
        return PipelineShape(ranks=self.pp, chunks=self.vpp, microbatches=self.microbatches)

    def passes(self) -> Grid:
        return pipeline_schedule(
            self.pp, self.vpp, self.microbatches, group_size=self.group_size, forward_only=self.forward_only
        )

    def complete(self) -> Grid:
        return with_communication(self.passes())


@st.composite
def layouts(draw: st.DrawFn, *, forward_only: bool | None = None, least_pp: int = 1) -> Layout:
    """Every kind of layout that a builder accepts, small."""
    evaluation = draw(st.booleans()) if forward_only is None else forward_only
    vpp = draw(st.integers(1, 3))
    pp = draw(st.integers(max(least_pp, 2 if vpp > 1 else 1), 4))
    if vpp == 1:
        count = draw(st.integers(1, 9))
        return Layout(pp=pp, vpp=1, microbatches=count, group_size=None, forward_only=evaluation)
    group = draw(st.integers(pp, 2 * pp))
    rest = draw(st.sampled_from([0, *range(pp, group)]))
    count = group * draw(st.integers(1, 2)) + rest
    return Layout(pp=pp, vpp=vpp, microbatches=count, group_size=group, forward_only=evaluation)
