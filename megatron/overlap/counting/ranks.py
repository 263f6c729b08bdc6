"""One process in the place of all ranks that share a layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core import parallel_state, tensor_parallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron.pretrain.config import PretrainConfig


@contextmanager
def one_of_many(config: PretrainConfig) -> Iterator[None]:
    """Megatron-Core's process groups as the first rank of this configuration sees them; nothing is ever sent.

    Works only where no process group exists; leaves none behind.
    """
    world, parallel = config.world, config.parallel
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=world.rank, world_size=world.world_size)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
            context_parallel_size=parallel.context_parallel_size,
            expert_model_parallel_size=parallel.expert_model_parallel_size,
            expert_tensor_parallel_size=parallel.expert_tensor_parallel_size,
            create_gloo_process_groups=False,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(config.training.seed)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
