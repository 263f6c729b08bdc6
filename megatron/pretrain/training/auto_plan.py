"""Planning in the middle of a run: on one rank, in processes of their own (docs/profile.md)."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.config.checks.overlap import AUTO, AUTO_MEMORY
from megatron.pretrain.training.plan_changes import changes_in_words
from megatron.pretrain.training.planner_process import PLANNER, PlannerError, plan_for, predicted_us
from overlap_recompute.plan.codec import FileError, from_data, write_record
from overlap_recompute.plan.device import planned_bytes
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.plan_file import PLAN_VERSION, Plan
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import layout_text
from overlap_recompute.plan.validation import check_plan

logger = logging.getLogger(__name__)

WORTH_IT = 0.01
"""A plan, or a layout, must be predicted to be faster by more than this part of an iteration."""
BYTES_PER_GIB = 1 << 30
US_PER_MS = 1e3
PLAN_S, SIMULATE_S, ADVICE_S = 300, 60, 60
"""Most that a question may take; the other ranks wait meanwhile."""
Share = Callable[[bytes, torch.device], list[bytes]]
"""What every rank gave, on every rank; collective."""
Drifts = Callable[[Profile, Profile], list[str]]
"""Windows that are not what they were, in words."""


class AutoPlanner:
    """Plans from each measurement of a run, and keeps the plan that is followed.

    Args:
        config: the options of the run.
        device: where the model lives.
        share: gives bytes to all ranks.
        drifts: compares two profiles.
    """

    def __init__(self, config: PretrainConfig, device: torch.device, *, share: Share, drifts: Drifts) -> None:
        self._config, self._device, self._share, self._drifts = config, device, share, drifts
        self._present: Plan | None = None
        self._source: Profile | None = None
        """That the present plan was made from; on rank 0."""
        self.asked = 0
        """How often a plan was asked for."""

    def plan(self, profile: Profile) -> Plan:
        """The plan to follow from now on, the same on every rank; collective.

        Args:
            profile: the last measurement; its bytes of gradients are those that rank 0 counted.

        Raises:
            ConfigError: on every rank, with the planner's words, where there is no plan yet and none was found.
        """
        self.asked += 1
        mine = json.dumps(self._answer(profile)).encode() if self._config.world.rank == 0 else b""
        answer = json.loads(self._share(mine, self._device)[0])
        if "fault" in answer:
            raise ConfigError(
                f"{AUTO} without a plan ({answer['fault']})", "a plan for the budget", f"change {AUTO_MEMORY}"
            )
        if "plan" in answer:
            self._present = from_data(answer["plan"], Plan, PLAN_VERSION, "the plan of rank 0")
            check_plan(self._present, "the plan of rank 0")
        assert self._present is not None, "the first answer is a plan or a fault"
        return self._present

    def _answer(self, profile: Profile) -> dict[str, object]:
        """Of rank 0: a plan, a fault, or nothing to keep the present plan."""
        budget_gib = budget_gib_of(self._config, self._device)
        try:
            plan = plan_for(profile, budget_gib, limit_s=PLAN_S)
            if self._present is None:
                logger.info("planned for %.3g GiB a rank with planner %s", budget_gib, PLANNER)
            elif not self._is_better(plan, self._present, profile):
                return {}
        except PlannerError as error:
            if self._present is None:
                return {"fault": str(error)}
            logger.warning("measured anew, the plan is kept: %s", error)
            return {}
        self._source = profile
        better = _better_split(plan, profile, budget_gib) if profile.layout.pipeline_parallel > 1 else None
        self._keep(plan if better is None else better)
        return {"plan": asdict(plan)}

    def _keep(self, plan: Plan) -> None:
        """For the next start; a file that cannot be written ends no training."""
        file = self._config.overlap.overlap_recompute_auto_plan
        if file is None:
            return
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            write_record(Path(file), plan)
        except (OSError, FileError) as error:
            logger.warning("the plan is not kept in %s (%s); the next start will measure again", file, error)
            return
        logger.info("the plan for the next start is in %s", file)

    def _is_better(self, plan: Plan, present: Plan, profile: Profile) -> bool:
        """Whether to change plans, and say so."""
        present_us, plan_us = predicted_us(profile, present, limit_s=SIMULATE_S), plan.predicted_iteration_us
        off = self._drifts(self._source, profile) if self._source is not None else []
        is_better = bool(off) or plan_us < present_us * (1 - WORTH_IT)
        logger.info(
            "measured anew, %s: %s; predicted iteration %s%s",
            "another plan is taken" if is_better else "the plan is kept",
            changes_in_words(present, plan) or "no decision differs",
            _times(present_us, plan_us),
            f"; windows {', '.join(off)}" if off else "",
        )
        return is_better


def budget_gib_of(config: PretrainConfig, device: torch.device) -> float:
    """Memory of a rank that is planned for: the flag's, or a share of the device's."""
    given = config.overlap.overlap_recompute_memory_gib
    if given is not None:
        return given
    return planned_bytes(int(torch.cuda.get_device_properties(device).total_memory)) / BYTES_PER_GIB


def _better_split(plan: Plan, profile: Profile, budget_gib: float) -> Plan | None:
    """The plan of a layout that would be faster, if there is one. A run keeps its own to its end."""
    try:
        best = plan_for(profile, budget_gib, limit_s=ADVICE_S, partition=True)
    except PlannerError as error:
        logger.info("no advice on the layout: %s", error)
        return None
    is_other = best.layout.split != plan.layout.split
    if not is_other or best.predicted_iteration_us >= plan.predicted_iteration_us * (1 - WORTH_IT):
        return None
    logger.info(
        "a better split of the layers for the next start: --pipeline-model-parallel-layout '%s' (predicted "
        "iteration %s)",
        layout_text(best.layout.split),
        _times(plan.predicted_iteration_us, best.predicted_iteration_us),
    )
    return best


def _times(old_us: float, new_us: float) -> str:
    change = f" ({new_us / old_us - 1:+.1%})" if old_us else ""
    return f"{old_us / US_PER_MS:.2f} -> {new_us / US_PER_MS:.2f} ms{change}"
