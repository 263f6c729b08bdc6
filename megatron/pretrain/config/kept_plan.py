"""The plan that an earlier start of a run that plans for itself has left (`--overlap-recompute-auto-plan`)."""

import os.path
from dataclasses import replace
from pathlib import Path

from megatron.pretrain.config.pretrain_config import PretrainConfig
from megatron.pretrain.config.run_layout import layout_of
from overlap_recompute.plan.codec import FileError
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.plan_file import Plan
from overlap_recompute.plan.split import layout_text
from overlap_recompute.plan.validation import read_plan

BYTES_PER_GIB = 1 << 30
SAME_BUDGET = 1e-4
"""Budgets that differ by no more than this part are the same one, written with fewer digits."""


def follow_kept_plan(config: PretrainConfig) -> tuple[PretrainConfig, str | None]:
    """Carry the plan out, where there is one for this budget; a run that measures again and again takes its split."""
    options = config.overlap
    file = options.overlap_recompute_auto_plan
    if not options.overlap_recompute_auto or file is None or options.overlap_recompute_plan is not None:
        return config, None
    if not os.path.exists(file):
        return config, None
    plan = _read(Path(file))
    if plan is not None and not _is_of_budget(plan, options.overlap_recompute_memory_gib):
        budget_gib = plan.budget_bytes / BYTES_PER_GIB
        note = f"the plan in {file} is for {budget_gib:.4g} GiB a rank: the run measures and plans anew"
        return config, None if note in config.notes else note
    if plan is not None and says_where_layers_go(config) and not _is_of_split(plan, config):
        note = (
            f"the plan in {file} is for another split of the layers than the flags': the run measures and plans anew; "
        )
        note += f"without those flags it takes the plan's ({layout_text(plan.layout.split)})"
        return config, None if note in config.notes else note
    if options.overlap_recompute_replan_interval is not None:
        return config, None
    # A damaged file, or the plan of another run, is left for `validate` to refuse.
    followed = replace(options, overlap_recompute_plan=file)
    note = f"the plan in {file}, which an earlier start has left, is followed: nothing is measured"
    return replace(config, overlap=followed), note


def file_of_split(config: PretrainConfig) -> Path | None:
    """The plan whose split of the layers the run takes, unless flags say where they go."""
    options = config.overlap
    if options.overlap_recompute_plan is not None:
        return Path(options.overlap_recompute_plan)
    if not options.overlap_recompute_auto or options.overlap_recompute_auto_plan is None:
        return None
    file = options.overlap_recompute_auto_plan
    return Path(file) if os.path.exists(file) else None


def says_where_layers_go(config: PretrainConfig) -> bool:
    """Whether flags do, other than the number of stages."""
    parallel = config.parallel
    said = (
        parallel.pipeline_model_parallel_layout, parallel.num_layers_per_virtual_pipeline_stage,
        parallel.num_virtual_stages_per_pipeline_rank, parallel.decoder_first_pipeline_num_layers,
        parallel.decoder_last_pipeline_num_layers,
    )  # fmt: skip
    return any(flag is not None for flag in said)


def _is_of_split(plan: Plan, config: PretrainConfig) -> bool:
    try:
        return plan.layout.split == layout_of(config).split
    except ConfigError:
        return True  # flags that `validate` refuses


def _read(path: Path) -> Plan | None:
    try:
        return read_plan(path)
    except FileError:
        return None


def _is_of_budget(plan: Plan, budget_gib: float | None) -> bool:
    if budget_gib is None:  # a share of the device's memory, which is not known here
        return True
    return abs(plan.budget_bytes / BYTES_PER_GIB / budget_gib - 1) <= SAME_BUDGET
