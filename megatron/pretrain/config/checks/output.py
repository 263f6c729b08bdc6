"""Where a run writes, and what it is resumed from."""

import os

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.pretrain_config import PretrainConfig


def folders_can_be_written(config: PretrainConfig) -> None:
    """Every folder that the run writes to exists or can be made, found out now and not after the first hours."""
    folders = {
        "--save": config.checkpoint.save,
        "--tensorboard-dir": config.logging.tensorboard_dir,
        "--wandb-save-dir": config.logging.wandb_save_dir or None,
        "--data-cache-path": config.data.data_cache_path,
        "--overlap-recompute-trace": config.overlap.overlap_recompute_trace,
    }
    for flag, folder in folders.items():
        require(
            folder is None or _can_hold_files(folder),
            f"{flag} {folder}, which cannot be written",
            "a folder that exists or can be made, with permission to write",
            f"correct {flag} or its permissions",
        )


def files_can_be_written(config: PretrainConfig) -> None:
    """They are files, in folders that exist or can be made."""
    files = {
        "--metrics-file": config.logging.metrics_file,
        "--overlap-recompute-profile": config.overlap.overlap_recompute_profile,
    }
    for flag, path in files.items():
        require(
            path is None or (not os.path.isdir(path) and _can_hold_files(os.path.dirname(os.path.abspath(path)))),
            f"{flag} {path}, which cannot be written",
            "the path of a file in a folder with permission to write",
            f"correct {flag}",
        )


def checkpoint_to_load_exists(config: PretrainConfig) -> None:
    """An absent folder is an error with --exit-on-missing-checkpoint, or for one iteration; a file is one always."""
    options = config.checkpoint
    must_exist = options.exit_on_missing_checkpoint or options.ckpt_step is not None or options.finetune
    absent_is_fine = options.load is None or (not must_exist and not os.path.lexists(options.load))
    require(
        absent_is_fine or os.path.isdir(str(options.load)),
        f"--load {options.load}, which is not a folder",
        "a folder with checkpoints",
        "correct --load",
    )


def wandb_run_has_a_name(config: PretrainConfig) -> None:
    """As in Megatron-LM."""
    require(
        not config.logging.wandb_project or bool(config.logging.wandb_exp_name),
        f"--wandb-project {config.logging.wandb_project} without --wandb-exp-name",
        "a name for the run",
        "add --wandb-exp-name",
    )


def _can_hold_files(folder: str) -> bool:
    """Whether `folder`, or the nearest folder above it that exists, can be written."""
    path = os.path.abspath(folder)
    while not os.path.lexists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


CHECKS: tuple[Check, ...] = (
    folders_can_be_written,
    files_can_be_written,
    checkpoint_to_load_exists,
    wandb_run_has_a_name,
)
