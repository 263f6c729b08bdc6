"""Which rank reads which data: one iterator per model chunk that needs tokens or labels."""

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.utils import get_attr_wrapped_model

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.data.datasets import SampleDataset
from megatron.pretrain.data.loader import build_loader
from megatron.pretrain.training.step import BatchIterator


def build_iterators(
    config: PretrainConfig,
    model: list[DistributedDataParallel],
    device: torch.device,
    dataset: SampleDataset | None,
    consumed_samples: int,
    *,
    repeats: bool = False,
) -> list[BatchIterator | None]:
    """Make an iterator for each chunk of this rank that holds the embedding or the loss; None for the others.

    Chunks need iterators of their own because an interleaved schedule runs them at different microbatches. Every
    tensor-parallel rank of such a stage reads for itself: the page cache serves them all, and no broadcast is needed.

    Args:
        config: the options of the run.
        model: the chunks of this rank.
        device: where batches go.
        dataset: a split; None on ranks that read nothing.
        consumed_samples: sequences of the split that the run has read before, over all data-parallel ranks.
        repeats: begin again after the last sequence of the split.
    """
    return [
        build_loader(
            dataset,
            consumed_samples=consumed_samples,
            config=config,
            dp_rank=parallel_state.get_data_parallel_rank(),
            dp_size=parallel_state.get_data_parallel_world_size(),
            cp_rank=parallel_state.get_context_parallel_rank(),
            cp_size=parallel_state.get_context_parallel_world_size(),
            device=device,
            repeats=repeats,
        )
        if dataset is not None and _reads(chunk)
        else None
        for chunk in model
    ]


def _reads(chunk: DistributedDataParallel) -> bool:
    return get_attr_wrapped_model(chunk, "pre_process") or get_attr_wrapped_model(chunk, "post_process")
