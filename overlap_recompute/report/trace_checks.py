"""Whether a trace may stand beside the prediction of a plan: same model, same layout, same plan."""

from overlap_recompute.plan.digest import plan_digest
from overlap_recompute.plan.errors import DataError
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.profile import Layout, Profile
from overlap_recompute.plan.run_trace import TraceOrigin
from overlap_recompute.plan.split import layout_text

_SHOWN = 12
"""Digits of a digest in messages."""


def check_model(origin: TraceOrigin, profile: Profile, source: str) -> None:
    """Refuse the trace of another model, or of another layout within and over its stages.

    Args:
        origin: what the trace says.
        profile: that the page is made from; its data-parallel size and number of microbatches are not asked for.
        source: the trace, for messages.

    Raises:
        DataError: naming both.
    """
    if origin.model_fingerprint != profile.model_fingerprint:
        raise DataError(
            f"{source}, a trace of the model {origin.model_fingerprint}",
            f"one of {profile.model_fingerprint}, that of the profile ({profile.model})",
            "name the profile that was measured with this run's model, or another trace",
        )


def check_layout(origin: TraceOrigin, layout: Layout, source: str) -> None:
    """Refuse the trace of a run with other stages, or of so many ranks that the layout does not fit into them.

    Raises:
        DataError: naming both.
    """
    ranks = layout.tensor_parallel * layout.context_parallel * layout.pipeline_parallel
    stages = (origin.stages, origin.chunks)
    if stages != (layout.pipeline_parallel, layout.chunks) or origin.ranks % ranks:
        raise DataError(
            f"{source}, a trace of {origin.ranks} ranks in {origin.stages} stages of {origin.chunks} model chunks",
            f"{ranks} ranks, or a multiple, in {layout.pipeline_parallel} stages of {layout.chunks} "
            f"(layers {layout_text(layout.split)})",
            "name a trace of this layout, or the profile and plan of that run",
        )


def check_plan(origin: TraceOrigin, plan: Plan, source: str) -> None:
    """Refuse the trace of another plan, or of none.

    Raises:
        DataError: naming both.
    """
    digest = plan_digest(plan)
    if origin.plan_digest != digest:
        raise DataError(
            f"{source}, a trace of {name_of(origin)}",
            f"one of the plan {plan.planner} {digest[:_SHOWN]}",
            "name the plan that this run carried out, or the trace of a run with this plan",
        )


def name_of(origin: TraceOrigin) -> str:
    """Plan or policy of a run, for people."""
    if origin.plan_digest is None:
        return f"the policy {origin.policy}"
    return f"the plan {origin.planner} {origin.plan_digest[:_SHOWN]}"
