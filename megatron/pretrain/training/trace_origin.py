"""What the traces of a run say about it."""

import datetime
from typing import TYPE_CHECKING

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.config.model_fingerprint import model_fingerprint
from megatron.pretrain.distributed.emulated_link import emulated_link_text
from overlap_recompute.plan.digest import plan_digest
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.run_trace import TRACE_VERSION, TraceOrigin

if TYPE_CHECKING:
    from megatron.overlap.settings import OverlapSettings

DEFAULT_POLICY = "all"
"""Of a run whose flags name none."""


def trace_origin(config: PretrainConfig, plan: Plan | None, settings: "OverlapSettings", *, chunks: int) -> TraceOrigin:
    """The origin of this rank's trace.

    Args:
        config: the options of the run.
        plan: that is carried out; None: the policy is.
        settings: of this rank.
        chunks: of the stage.
    """
    return TraceOrigin(
        version=TRACE_VERSION,
        rank=settings.rank,
        ranks=config.world.world_size,
        stage=settings.stage,
        stages=settings.stages,
        chunks=chunks,
        microbatches=settings.microbatches,
        model_fingerprint=model_fingerprint(config),
        plan_digest=None if plan is None else plan_digest(plan),
        planner="" if plan is None else plan.planner,
        policy=(config.overlap.overlap_recompute_policy or DEFAULT_POLICY) if plan is None else None,
        window_kinds=tuple(sorted(kind.value for kind in settings.fills)),
        prefetch_cap_bytes=settings.prefetch_cap_bytes,
        device=settings.device.type,
        taken=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        note=emulated_link_text(config.distributed),
    )
