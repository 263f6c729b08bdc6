"""Reading the pickles that a torch_dist checkpoint cannot do without, admitting only the classes that belong in them.

`torch.distributed.checkpoint` keeps its index (`.metadata`) as a pickle and reads it with plain `pickle.load`, which
runs whatever a file from elsewhere tells it to. Here a name outside the list below is an error before anything runs.
"""

import pickle
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from overlap_recompute.plan.errors import CheckpointError

METADATA_NAME = ".metadata"

_CHECKPOINT = "torch.distributed.checkpoint"
_ADMITTED = frozenset(
    {
        *((f"{_CHECKPOINT}.metadata", name) for name in (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
            "TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
        )),
        (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
        (f"{_CHECKPOINT}.storage", "WriteResult"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
    }
)  # fmt: skip


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that knows the classes of torch's checkpoint index and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a global up; called by the base class.

        Raises:
            pickle.UnpicklingError: the global is not one that a checkpoint's index needs.
        """
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) not in _ADMITTED and not is_dtype:
            raise pickle.UnpicklingError(f"refuses {module}.{name}")
        return super().find_class(module, name)


def read_restricted(stream: IO[bytes]) -> Any:
    """Unpickle one object of admitted classes."""
    return RestrictedUnpickler(stream).load()


def read_metadata(folder: Path) -> Metadata:
    """Read the index of a torch_dist checkpoint.

    Raises:
        CheckpointError: it is damaged, or holds a class that does not belong there.
    """
    path = folder / METADATA_NAME
    try:
        with path.open("rb") as stream:
            metadata = read_restricted(stream)
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise TypeError(f"it holds a {type(metadata).__name__}")
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(
            found=f"{path} with an unusable content ({type(error).__name__}: {error})",
            expected="the index of a torch_dist checkpoint",
            next_step="restore it, or load another checkpoint with --ckpt-step",
        ) from error
    return metadata
