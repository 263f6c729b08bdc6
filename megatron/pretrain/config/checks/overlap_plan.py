"""A plan file and the run that is to carry it out."""

from dataclasses import fields
from pathlib import Path

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.model_fingerprint import model_fingerprint, model_summary
from megatron.pretrain.config.pretrain_config import PretrainConfig
from megatron.pretrain.config.run_layout import layout_of
from overlap_recompute.plan.codec import FileError
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.plan_file import FORWARD_WAIT, PIPELINE_WINDOW, Plan
from overlap_recompute.plan.profile import Layout
from overlap_recompute.plan.software import differences, software_versions
from overlap_recompute.plan.split import layout_text
from overlap_recompute.plan.validation import read_plan

PLAN = "--overlap-recompute-plan"
FREE = ("data_parallel", "microbatches")
"""Fields of a layout that a run may change: what a plan says about time and memory then holds no more to the byte."""


def plan_decides_alone(config: PretrainConfig) -> None:
    """Flags that say what a plan says do not go with it."""
    options = config.overlap
    given = {
        "--overlap-recompute-policy": options.overlap_recompute_policy,
        "--overlap-recompute-windows": options.overlap_recompute_windows,
        "--overlap-recompute-prefetch-mib": options.overlap_recompute_prefetch_mib,
    }
    other = next((flag for flag, value in given.items() if value is not None), None)
    require(
        options.overlap_recompute_plan is None or other is None,
        f"{PLAN} with {other}, which the plan decides",
        "one of the two",
        f"remove {other}, or make another plan",
    )
    require(
        options.overlap_recompute_plan is None or options.overlap_recompute,
        f"{PLAN} without --overlap-recompute",
        "--overlap-recompute with it",
        f"add --overlap-recompute, or remove {PLAN}",
    )


def plan_is_of_this_run(config: PretrainConfig) -> None:
    """Same model, same layout, same software, and schedules that open the waits it fills."""
    file = config.overlap.overlap_recompute_plan
    if file is None:
        return
    path = Path(file)
    require(
        not path.exists() or path.is_file() or path.is_dir(),
        f"{PLAN} {file}, which is a pipe or a device",
        "a file, which every rank can read, and read again",
        "write the plan to a file",
    )
    try:
        plan = read_plan(path)
    except FileError as error:
        raise ConfigError(f"{PLAN}: {error.found}", error.expected, error.next_step) from error
    what = f"{PLAN} {file}, whose plan"
    _check_layout(plan, layout_of(config), what)
    mark = model_fingerprint(config)
    require(
        plan.model_fingerprint == mark,
        f"{what}.model_fingerprint is {plan.model_fingerprint}",
        f"{mark}, that of this run ({model_summary(config)})",
        "measure a profile with these flags and plan from it",
    )
    other = differences(plan.software, software_versions())
    require(
        not other,
        f"{what}.software is {', '.join(other)}",
        "the versions that are installed",
        "measure and plan again with them, or install those of the plan",
    )
    _check_waits(plan, config, what)


def _check_layout(plan: Plan, here: Layout, what: str) -> None:
    for field in fields(Layout):
        planned, ours = getattr(plan.layout, field.name), getattr(here, field.name)
        if field.name == "split":
            planned, ours = layout_text(planned), layout_text(ours)
        require(
            field.name in FREE or planned == ours,
            f"{what}.layout.{field.name} is {planned}",
            f"{ours}, as in this run",
            "give the run the plan's layout (without layout flags it takes the plan's), or plan for this one",
        )


def _check_waits(plan: Plan, config: PretrainConfig, what: str) -> None:
    """A plan that the run has made for itself is followed all the same; a note has said what becomes of these fills."""
    options = config.overlap
    by_itself = options.overlap_recompute_auto and options.overlap_recompute_plan == options.overlap_recompute_auto_plan
    if config.parallel.schedule_impl != "stock" or options.overlap_recompute_serialize or by_itself:
        return
    waits = (PIPELINE_WINDOW, FORWARD_WAIT)
    for stage in plan.stages:
        units = sum(fill.window in waits for fill in stage.fills)
        require(
            units == 0,
            f"{what}.stages[{stage.stage}].fills puts {units} of {len(stage.fills)} units into waits for other stages "
            "(pp_wait), with --schedule-impl stock, whose schedules fill none",
            "schedules that fill the waits of the plan",
            "remove --schedule-impl stock",
        )


CHECKS: tuple[Check, ...] = (plan_decides_alone, plan_is_of_this_run)
