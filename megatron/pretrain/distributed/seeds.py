"""Seeds of a rank, by Megatron-LM's rule."""

import random

import numpy as np
import torch
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

STAGE_STEP = 100
DATA_PARALLEL_STEP = 10


def rank_seed(seed: int, *, pp_rank: int, dp_rank: int, data_parallel_random_init: bool = False) -> int:
    """The seed of a rank: every pipeline stage draws differently, tensor- and data-parallel ranks alike.

    Args:
        seed: --seed.
        pp_rank: pipeline stage.
        dp_rank: data-parallel rank.
        data_parallel_random_init: also draw differently on every data-parallel rank.
    """
    return seed + STAGE_STEP * pp_rank + (DATA_PARALLEL_STEP * dp_rank if data_parallel_random_init else 0)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy, torch and Megatron-Core's tracker, which adds the tensor- and expert-parallel ranks."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)
