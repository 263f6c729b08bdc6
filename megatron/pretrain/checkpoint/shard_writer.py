"""Hooks megatron/core/dist_checkpointing/serialization.py (`save`) and strategies/torch.py of megatron-core 0.16.1.

The stock save raises in the middle of its protocol: rank 0 writes `common.pt`, `.metadata` and `metadata.json` between
collectives that the other ranks have already entered, so a full disk on rank 0 hangs the job. It also starts a
`multiprocessing.Manager` per rank, which imports torch and Megatron-Core once more (3 to 8 s). Here the same parts of
Megatron-Core and torch are called so that everything that touches the disk is in `ShardWriter.write` (local) and
`ShardWriter.finish` (rank 0), and no collective comes between. The files are those of the stock `torch_dist` format.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.exchange_utils import determine_main_replica_uniform_distribution
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedObject, ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    distribute_main_replicas_with_precomputed_distribution,
)
from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner, mcore_to_pyt_state_dict
from torch.distributed.checkpoint import FileSystemWriter, Metadata
from torch.distributed.checkpoint.filesystem import _StoragePrefix
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from megatron.pretrain.checkpoint.ranks import Ranks
from megatron.pretrain.checkpoint.record import checksum
from megatron.pretrain.checkpoint.restricted_pickle import METADATA_NAME
from overlap_recompute.plan.errors import CheckpointError
from overlap_recompute.plan.files import sync_file

Written: TypeAlias = tuple[list[WriteResult], dict[str, int]]
"""What a rank has written: what is where, and the CRC-32 of each of its files."""

BACKEND = CheckpointingConfig("torch_dist", 1)

_CONFIG_NAME = "metadata.json"


class _Writer(FileSystemWriter):
    """torch's writer, leaving the machine's paths out of what it writes."""

    def storage_meta(self) -> StorageMeta | None:
        return None


class ShardWriter:
    """One rank's part of one save.

    ```
    plan_save(...)  collective, touches no disk: who writes what, index of the whole checkpoint on rank 0
    write()         local: this rank's shards; rank 0 also the common part. May run in a forked child.
    finish(results) rank 0: the index, from what every rank's `write` returned, and a check of the files
    ```
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        common: dict[str, Any],
        planner: MCoreSavePlanner,
        plan: SavePlan,
        metadata: Metadata | None,
        *,
        in_background: bool,
    ) -> None:
        self.folder = folder
        self._ranks = ranks
        self._common = common
        self._planner = planner
        self._plan = plan
        self._metadata = metadata
        # A forked child must not touch CUDA: without copy-ahead, torch's writer opens no stream.
        self._writer = _Writer(folder, per_thread_copy_ahead=0) if in_background else _Writer(folder)

    def write(self) -> Written:
        """Write and sync this rank's files, and say what is where in them."""
        results: list[WriteResult] = []
        names: set[str] = set()
        if self._ranks.is_first:
            with (self.folder / COMMON_STATE_FNAME).open("wb") as stream:
                torch.save(self._common, stream)
                stream.flush()
                os.fsync(stream.fileno())
            names.add(COMMON_STATE_FNAME)
        if self._plan.items:
            results = self._writer.write_data(self._plan, self._planner).value()
            names.update(result.storage_data.relative_path for result in results)
        if len(results) != len(self._plan.items):
            raise OSError(f"{len(results)} of {len(self._plan.items)} tensors written to {self.folder}")
        return results, {name: checksum(self.folder / name) for name in sorted(names)}

    def finish(self, parts: Sequence[Written]) -> dict[str, int]:
        """Write the index; return the checksums of all files. Call on rank 0 with what every rank's `write` returned.

        Raises:
            CheckpointError: a file that a rank wrote is not what it should be, seen from rank 0.
        """
        assert self._metadata is not None
        results = [results for results, _ in parts]
        self._check_shards(results)
        self._writer.finish(self._metadata, results)
        save_config(BACKEND, str(self.folder))
        sync_file(self.folder / _CONFIG_NAME)
        checksums = {name: value for _, part in parts for name, value in part.items()}
        return checksums | {name: checksum(self.folder / name) for name in (METADATA_NAME, _CONFIG_NAME)}

    def _check_shards(self, results: list[list[WriteResult]]) -> None:
        sizes: dict[str, int] = {}
        for result in (item for items in results for item in items):
            data = result.storage_data
            sizes[data.relative_path] = max(sizes.get(data.relative_path, 0), data.offset + data.length)
        for name, size in sizes.items():
            path = self.folder / name
            found = path.stat().st_size if path.exists() else None
            if found != size:
                raise CheckpointError(
                    found=f"{'no file' if found is None else f'{found} bytes'} at {path} on rank 0",
                    expected=f"the {size} bytes that another rank wrote there",
                    next_step="let --save be a folder that all nodes share",
                )


def plan_save(
    state_dict: dict[str, Any],
    folder: Path,
    ranks: Ranks,
    *,
    share_over: torch.distributed.ProcessGroup | None,
    in_background: bool,
    validate: bool,
) -> ShardWriter:
    """Plan the save of a sharded state dict. Collective; touches no disk.

    Args:
        state_dict: as `sharded_state_dict` of Megatron-Core's modules and optimizers makes it; consumed.
        folder: where to write; exists and is empty.
        ranks: all ranks of the job.
        share_over: process group whose ranks share the writing of what they all hold; None: the first holder writes.
        in_background: whether `write` will run in a forked child; tensors on a GPU are copied to the host first.
        validate: check that the ranks' shards make up whole tensors (a collective; once per run is enough).

    Raises:
        CheckpointError: on every rank, if the plan cannot be made on some rank.
    """
    step = f"planning {folder.name}"

    def prepare() -> tuple[dict[str, Any], dict[str, Any]]:
        sharded, common = save_preprocess(state_dict, validate)
        if share_over is not None:
            distribution = determine_main_replica_uniform_distribution(sharded, share_over)
            distribute_main_replicas_with_precomputed_distribution(sharded, share_over, distribution)
        return sharded, common

    sharded, common = ranks.together(step, prepare)
    planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    index: list[Metadata] = []

    def plan_locally() -> SavePlan:
        tensors = mcore_to_pyt_state_dict(group_by_key(_written_here(sharded, in_background)), is_loading=False)
        planner.set_up_planner(tensors, is_coordinator=ranks.is_first)
        return planner.create_local_plan()

    def plan_globally(plans: list[SavePlan]) -> None:
        index.append(planner.create_global_plan(plans)[1])

    ranks.gather(step, plan_locally, plan_globally)
    plan = dataclasses.replace(planner.plan, storage_data=_StoragePrefix(f"__{ranks.rank}_"))
    metadata = index[0] if index else None
    return ShardWriter(folder, ranks, common, planner, plan, metadata, in_background=in_background)


def group_by_key(shards: Sequence[ShardedBase]) -> dict[str, list[ShardedBase]]:
    """Shards of this rank by the name of the whole tensor or object, as torch's planners want them."""
    groups: dict[str, list[ShardedBase]] = {}
    for shard in shards:
        key = shard.unique_key if isinstance(shard, ShardedObject) else shard.key
        groups.setdefault(key, []).append(shard)
    return groups


def _written_here(sharded: dict[str, Any], in_background: bool) -> list[ShardedBase]:
    mine = [shard for shard in nested_values(sharded) if is_main_replica(shard.replica_id)]
    on_device = [shard for shard in mine if isinstance(shard, ShardedTensor) and shard.data.is_cuda]
    if in_background and on_device:
        for shard in on_device:
            shard.data = shard.data.detach().to("cpu", non_blocking=True)
        torch.cuda.synchronize()
    return mine
