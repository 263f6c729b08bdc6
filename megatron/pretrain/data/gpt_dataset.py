"""Hooks megatron/core/datasets/gpt_dataset.py of megatron-core 0.16.1: looks for room before an index is built.

Stock takes memory for as many samples as a run draws until there is none left, and counts epochs one by one. Whether a
cached index is there stock alone knows, so the question is asked where it builds one: where it counts epochs.
"""

from dataclasses import dataclass

from megatron.core.datasets import gpt_dataset as upstream
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset

from megatron.pretrain.data import index_room
from megatron.pretrain.data.blends import SPLITS
from megatron.pretrain.platform.seam import Expected, Seam
from overlap_recompute.plan.errors import DataError

BYTES_PER_GIB = 1 << 30

_SEAM = Seam(
    module=upstream.__name__,
    purpose="an index that does not fit into memory is begun, and epochs are counted one by one",
    expects=(Expected(name="GPTDataset._get_num_epochs", parameters=("self", "num_tokens_per_epoch")),),
    adjust=lambda module: None,
)


@dataclass
class RoomyConfig(GPTDatasetConfig):
    """Stock's, and who builds indices."""

    index_builders: int = 1
    """Processes that need the same memory on this machine; on all ranks but the first, which builds first, 1."""


class _AsksForRoom(GPTDataset):
    config: RoomyConfig

    def _get_num_epochs(self, num_tokens_per_epoch: int) -> int:
        assert num_tokens_per_epoch > 0, "check_data_files refuses such splits"
        size = index_room.size_of(
            self.num_samples,
            self.config.sequence_length,
            tokens=num_tokens_per_epoch,
            documents=len(self.indices),
        )
        _check_room(size, SPLITS[self.index_split.value], self.config)
        return size.epochs


class RoomyGPTDataset(_AsksForRoom):
    """GPTDataset."""


class RoomyMockGPTDataset(_AsksForRoom, MockGPTDataset):
    """MockGPTDataset."""


# The name of a class is part of the names of cached files: those of other Megatron-LM trainers stay good.
RoomyGPTDataset.__name__, RoomyMockGPTDataset.__name__ = GPTDataset.__name__, MockGPTDataset.__name__


def require_seam() -> None:
    """Check that stock still asks for the number of epochs where it builds an index.

    Raises:
        UserError: the installed megatron-core has a different shape.
    """
    _SEAM.apply(upstream)


def _check_room(size: index_room.IndexSize, split: str, config: RoomyConfig) -> None:
    available_bytes, builders = index_room.available_bytes(), config.index_builders
    needed_bytes = size.of_builders_bytes(builders)
    if available_bytes is None or needed_bytes <= available_bytes:
        return
    together = f", which {builders} ranks of this machine build" if builders > 1 else ""
    share = ", or let one rank build it (--data-cache-path)" if builders > 1 else ""
    raise DataError(
        f"an index of {size.samples} {split} samples ({size.epochs} times {size.documents} documents{together}) that "
        f"takes {needed_bytes / BYTES_PER_GIB:.1f} GiB",
        f"one that fits into the memory that is free, {available_bytes / BYTES_PER_GIB:.1f} GiB",
        f"draw fewer samples (--train-iters, --global-batch-size, --eval-iters){share}, or use more memory",
    )
