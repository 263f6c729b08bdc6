"""The traces of a run for the report: checked against profile and plan before anything is simulated."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from overlap_recompute.plan.digest import plan_digest
from overlap_recompute.plan.errors import DataError
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import Layout, Profile
from overlap_recompute.plan.run_trace import TraceOrigin
from overlap_recompute.planner.by_hand import plan_of_policy
from overlap_recompute.planner.comparison import ArmResult
from overlap_recompute.report import Measured, check_layout, check_model, check_plan, measured_of, read_traces
from overlap_recompute.report.trace_checks import name_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTrace:
    """A run that the page may show."""

    source: str
    measured: Measured
    profile: Profile
    """With the run's data-parallel size and number of microbatches, which a plan leaves free."""
    plan: Plan | None
    """The same of the plan that was carried out; None: the run had a plan, and nobody has named its file."""

    def arm_of(self, arms: Sequence[ArmResult]) -> str:
        """Name of the arm that the run carried out.

        Raises:
            DataError: none of them.
        """
        wanted = self.measured.origin.plan_digest
        for arm in arms:
            if arm.plan is not None and plan_digest(arm.plan) == wanted:
                return arm.name
        raise DataError(
            f"{self.source}, a trace of {name_of(self.measured.origin)}, which is none of the arms",
            "its plan", "name the plan's file behind the profile",
        )  # fmt: skip


def open_trace(path: Path, profile: Profile, plan: Plan | None) -> RunTrace:
    """Read and check.

    Args:
        path: folder or file.
        profile: of the run's model.
        plan: that the run must have carried out; None: whichever it was.

    Raises:
        DataError: the trace cannot be used, or is of another model, layout or plan.
    """
    source = str(path)
    traces = read_traces(path)
    origin = traces[0].origin
    check_model(origin, profile, source)
    check_layout(origin, profile.layout if plan is None else plan.layout, source)
    if plan is not None:
        check_plan(origin, plan, source)
        plan = dataclasses.replace(plan, layout=_layout(plan.layout, origin))
    profile = dataclasses.replace(profile, layout=_layout(profile.layout, origin))
    if plan is None and origin.policy is not None:
        plan = plan_of_policy(
            profile,
            origin.policy,
            window_kinds=sorted({kind for trace in traces for kind in trace.origin.window_kinds}),
            prefetch_cap_bytes=origin.prefetch_cap_bytes,
        )
    return RunTrace(source=source, measured=measured_of(traces, source), profile=profile, plan=plan)


def _layout(layout: Layout, origin: TraceOrigin) -> Layout:
    """The layout with the run's data-parallel size and number of microbatches."""
    ranks = layout.tensor_parallel * layout.context_parallel * layout.pipeline_parallel
    return dataclasses.replace(layout, data_parallel=origin.ranks // ranks, microbatches=origin.microbatches)
