"""Hooks megatron/core/dist_checkpointing/serialization.py (`load`) and strategies/torch.py of megatron-core 0.16.1.

The stock load reads the index with plain `pickle.load`, lets the index decide that a tensor is a pickled object, and
unpickles that without restrictions. Here the index passes `restricted_pickle`, objects are read with `weights_only`,
and the names of files must be those that the checkpoint lists. Planning and reading are torch's own collectives, which
carry a failure of one rank to all.
"""

import dataclasses
import io
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace, merge, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedObject, ShardedTensor, apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreLoadPlanner,
    TorchDistLoadShardedStrategy,
    mcore_to_pyt_state_dict,
)
from megatron.core.dist_checkpointing.utils import extract_sharded_base, force_all_tensors_to_non_fp8
from torch.distributed.checkpoint import FileSystemReader, Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from megatron.pretrain.checkpoint.ranks import Ranks
from megatron.pretrain.checkpoint.restricted_pickle import read_metadata
from megatron.pretrain.checkpoint.shard_writer import group_by_key
from overlap_recompute.plan.errors import CheckpointError


class _Planner(MCoreLoadPlanner):
    """Megatron-Core's planner, reading objects without running what they say."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


class _Reader(FileSystemReader):
    """torch's reader over an index that has been read and checked already."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._folder = folder
        self._metadata = metadata

    # torch looks for an index per rank when it sees a parameter called "kwargs" here.
    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for name, items in by_file.items():
            try:
                super().read_data(dataclasses.replace(plan, items=items), planner).wait()
            except Exception as error:
                raise CheckpointError(
                    found=f"{self._folder / name} cannot be read ({type(error).__name__}: {error})",
                    expected="the tensors that were saved",
                    next_step="restore the file, or load another checkpoint with --ckpt-step",
                ) from error
        done: Future[None] = Future()
        done.set_result(None)
        return done


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenCheckpoint:
    """A checkpoint whose small files have been read and checked on this rank."""

    folder: Path
    metadata: Metadata
    common: dict[str, Any]


def open_checkpoint(folder: Path, files: Collection[str]) -> OpenCheckpoint:
    """Read the index and the common part.

    Args:
        folder: a complete checkpoint.
        files: names of its files; an index that points anywhere else is refused.

    Raises:
        CheckpointError: a file is damaged or refers to what does not belong in a checkpoint.
    """
    metadata = read_metadata(folder)
    strangers = {info.relative_path for info in metadata.storage_data.values()} - set(files)
    if strangers:
        raise CheckpointError(
            found=f"an index in {folder} that points to {sorted(strangers)[0]!r}",
            expected="only files that the checkpoint lists",
            next_step="load another checkpoint with --ckpt-step",
        )
    path = folder / COMMON_STATE_FNAME
    try:
        common = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive can raise nearly anything
        raise CheckpointError(
            found=f"{path} with an unusable content ({type(error).__name__}: {str(error).splitlines()[0]})",
            expected="plain values and tensors",
            next_step="restore it, or load another checkpoint with --ckpt-step",
        ) from error
    return OpenCheckpoint(folder=folder, metadata=metadata, common=common)


class _LoadStrategy(TorchDistLoadShardedStrategy):
    """Fills the shards of a state dict, in place where they have tensors already, and returns their values."""

    def __init__(self, checkpoint: OpenCheckpoint, ranks: Ranks) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._ranks = ranks

    def load(self, sharded_state_dict: dict[Any, Any], checkpoint_dir: Path) -> dict[Any, Any]:
        shards = list(nested_values(sharded_state_dict))
        tensors = mcore_to_pyt_state_dict(group_by_key(shards), is_loading=True)
        planner = _Planner(
            flatten_state_dict=False,
            flatten_sharded_tensors=False,
            shapes_validation_sharded_tensors=[s for s in shards if isinstance(s, ShardedTensor) and not _may_grow(s)],
            allow_shape_mismatch_sharded_tensors={s.key: s for s in shards if _may_grow(s)},
        )
        reader = _Reader(checkpoint_dir, self._checkpoint.metadata)

        def read() -> None:
            with warnings.catch_warnings():
                # Megatron-Core wraps tensors in a class that torch is about to retire; users cannot help it.
                warnings.filterwarnings("ignore", message="Please use DTensor", category=FutureWarning)
                dcp.load(tensors, storage_reader=reader, planner=planner)

        self._ranks.together(f"reading {checkpoint_dir}", read)

        def unwrap(shard: ShardedBase) -> Any:
            if isinstance(shard, ShardedObject):
                return tensors[shard.unique_key].pop(0)
            return shard.data.view(shard.local_shape)

        return dict_list_map_inplace(unwrap, sharded_state_dict)


def load_shards(
    checkpoint: OpenCheckpoint,
    state_dict: dict[str, Any],
    ranks: Ranks,
    *,
    share_over: torch.distributed.ProcessGroup | None,
) -> dict[str, Any]:
    """Fill a sharded state dict from a checkpoint. Collective.

    Args:
        checkpoint: as `open_checkpoint` read it on this rank; consumed.
        state_dict: as `sharded_state_dict` of Megatron-Core's modules and optimizers makes it; consumed.
        ranks: all ranks of the job.
        share_over: process group whose ranks share the reading of what they all need; None: each reads for itself.

    Returns:
        The values at the places of the shards, together with the checkpoint's common part.

    Raises:
        CheckpointError: on every rank, if the checkpoint lacks something that some rank needs, or cannot be read.
    """

    def prepare() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        force_all_tensors_to_non_fp8(state_dict)
        wanted, local_objects, factories = load_preprocess(state_dict)
        sharded, _ = extract_sharded_base(wanted)
        _check_contents(list(nested_values(sharded)), checkpoint)
        return sharded, merge(checkpoint.common, local_objects), factories

    sharded, result, factories = ranks.together(f"preparing to load {checkpoint.folder}", prepare)
    strategy = _LoadStrategy(checkpoint, ranks)
    if share_over is not None:
        strategy = FullyParallelLoadStrategyWrapper(strategy, share_over)
    loaded = strategy.load(sharded, checkpoint.folder)
    return apply_factory_merges(merge(result, loaded), factories)


def _may_grow(shard: ShardedBase) -> bool:
    """Whether Megatron-Core allows another global shape: the vocabulary is padded to fit the tensor-parallel size."""
    return isinstance(shard, ShardedTensor) and shard.allow_shape_mismatch


def _check_contents(shards: list[ShardedBase], checkpoint: OpenCheckpoint) -> None:
    saved = checkpoint.metadata.state_dict_metadata
    for shard in shards:
        key = shard.unique_key if isinstance(shard, ShardedObject) else shard.key
        if key not in saved:
            raise _misfit(checkpoint.folder, key, "nothing", "it")
        if isinstance(shard, ShardedObject):
            continue
        size = getattr(saved[key], "size", None)
        if size is None or (tuple(size) != tuple(shard.global_shape) and not shard.allow_shape_mismatch):
            found = "an object" if size is None else f"shape {tuple(size)}"
            raise _misfit(checkpoint.folder, key, found, f"shape {tuple(shard.global_shape)}")


def _misfit(folder: Path, key: str, found: str, expected: str) -> CheckpointError:
    is_optimizer = key.startswith(("optimizer.", "chained_"))
    advice = (
        "load only the weights with --no-load-optim" if is_optimizer else "set the model flags as when it was saved"
    )
    return CheckpointError(found=f"{found} for {key} in {folder}", expected=expected, next_step=advice)
