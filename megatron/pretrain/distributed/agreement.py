"""What every rank must have read alike from files, told before it splits the run."""

import zlib

import torch

from megatron.pretrain.config import PretrainConfig
from overlap_recompute.plan.errors import ConfigError


def check_same_kept_plan(config: PretrainConfig, device: torch.device) -> None:
    """Every rank has found the same plan of an earlier start, or none; collective, where there may be one.

    Raises:
        ConfigError: on every rank, with the first one that has not found what rank 0 found.
    """
    file, world = config.overlap.overlap_recompute_auto_plan, config.world
    if file is None or world.world_size == 1:
        return
    found = f"{config.overlap.overlap_recompute_plan} {config.parallel.pipeline_model_parallel_layout}"
    marks = torch.zeros(world.world_size, dtype=torch.int64, device=device)
    marks[world.rank] = zlib.crc32(found.encode())
    torch.distributed.all_reduce(marks)
    first, *others = marks.tolist()
    other = next((rank for rank, mark in enumerate(others, 1) if mark != first), None)
    if other is not None:
        raise ConfigError(
            f"another plan of an earlier start in --overlap-recompute-auto-plan {file} on rank {other} than on rank 0",
            "one file, which every rank reads",
            "name a path on a file system that all machines share",
        )
