"""Megatron-Core's GPTDataset, MockGPTDataset and BlendedMegatronDatasetBuilder, set up from the flags of a run."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from megatron.core import parallel_state
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.data.blends import SEVERAL, SPLITS, Blend, DataPlan, data_plan
from megatron.pretrain.data.gpt_dataset import RoomyConfig, RoomyGPTDataset, RoomyMockGPTDataset, require_seam
from megatron.pretrain.data.index_cache import content_fingerprint, discard_damaged
from megatron.pretrain.data.tokenizers import Tokenizer
from overlap_recompute.plan.errors import DataError

SampleDataset: TypeAlias = GPTDataset | BlendedDataset


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSplits:
    """Sequences of each split, by position; None for a split that has no documents or draws no samples, and on a rank
    that reads no data."""

    train: SampleDataset | None
    valid: SampleDataset | None
    test: SampleDataset | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetTokenizer:
    """What Megatron-Core's datasets ask of a tokenizer. It holds no model, so a loader's worker processes copy none."""

    vocab_size: int
    eod: int
    unique_identifiers: dict[str, object]
    """Identity of the tokenizer and of the data files: both then are in the names of the index caches."""


def build_datasets(config: PretrainConfig, tokenizer: Tokenizer, *, train_samples: int = 0) -> DatasetSplits:
    """Build the splits. Every rank calls it; with a process group, rank 0 builds the indices and the others load them.

    Call `check_data_files` before it, in every process: this trusts the files.

    Args:
        config: the options of the run.
        tokenizer: that of the run.
        train_samples: training sequences that the run draws, if they are more than --train-iters global batches: one
            that was resumed with a smaller global batch has read more before.

    Raises:
        DataError: the index cache cannot be written, a blend draws more than its parts hold, or an index does not fit
            into memory.
    """
    require_seam()
    plan = data_plan(config)
    plan = replace(plan, samples=(max(plan.samples[0], train_samples), *plan.samples[1:]))
    dataset_config = _dataset_config(config, tokenizer, plan)
    distributed = torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        for folder in _cache_folders(config, plan):
            discard_damaged(folder)
    kind = RoomyMockGPTDataset if plan.mock else RoomyGPTDataset
    builder = BlendedMegatronDatasetBuilder(kind, list(plan.samples), _reads_data, dataset_config)
    built = _build(builder, config)
    train, valid, test = built
    for split, (dataset, wanted) in enumerate(zip(built, plan.samples, strict=True)):
        if dataset is not None and len(dataset) < wanted:
            raise DataError(
                f"{len(dataset)} {SPLITS[split]} samples",
                f"the {wanted} samples that this run draws",
                "write a weight before every prefix to allow repeats, or shorten the run",
            )
    return DatasetSplits(train=train, valid=valid, test=test)


def _dataset_config(config: PretrainConfig, tokenizer: Tokenizer, plan: DataPlan) -> RoomyConfig:
    blend, per_split = None, None
    if plan.shares is not None:
        blend = _stock_blend(plan.blends[0])
    elif not plan.mock:
        per_split = [_stock_blend(blend) if plan.is_used(split) else None for split, blend in enumerate(plan.blends)]
    prefixes = {prefix for blend in plan.blends if blend is not None for prefix in blend.prefixes}
    identity: dict[str, object] = {
        **tokenizer.unique_identifiers,
        "data": {prefix: content_fingerprint(prefix) for prefix in sorted(prefixes)},
    }
    # Stock 0.16.1 asks the process group for its rank when it caches the index of a blend, so without one: no cache.
    blended = any(blend is not None and len(blend.prefixes) >= SEVERAL for blend in plan.blends)
    cacheable = torch.distributed.is_initialized() or not blended
    dataset_config = RoomyConfig(
        random_seed=config.training.seed,
        sequence_length=config.model.seq_length,
        blend=blend,
        blend_per_split=per_split,
        split=None if plan.shares is None else ",".join(map(repr, plan.shares)),
        path_to_cache=config.data.data_cache_path if cacheable else None,
        tokenizer=DatasetTokenizer(vocab_size=tokenizer.vocab_size, eod=tokenizer.eod, unique_identifiers=identity),
        reset_position_ids=config.data.reset_position_ids,
        reset_attention_mask=False,
        eod_mask_loss=config.data.eod_mask_loss,
        # Causal attention needs no mask; stock would make one of sequence x sequence booleans for every sample.
        create_attention_mask=False,
        index_builders=_index_builders(plan.mock and config.data.data_cache_path is None),
    )
    if dataset_config.split_matrix is not None:
        # A split without documents makes stock loop for ever, even when no sample is wanted: leave such splits out.
        dataset_config.split_matrix = [
            part if plan.is_used(split) else None for split, part in enumerate(dataset_config.split_matrix)
        ]
    return dataset_config


def _stock_blend(blend: Blend | None) -> tuple[list[str], list[float] | None] | None:
    if blend is None:
        return None
    return list(blend.prefixes), None if blend.weights is None else list(blend.weights)


def _cache_folders(config: PretrainConfig, plan: DataPlan) -> list[Path]:
    """Where Megatron-Core keeps its indices: the folder that was named, else one beside each pair."""
    if config.data.data_cache_path is not None:
        return [Path(config.data.data_cache_path)]
    prefixes = dict.fromkeys(prefix for blend in plan.blends if blend is not None for prefix in blend.prefixes)
    return [Path(prefix) / "cache" / "GPTDataset_indices" for prefix in prefixes]


def _build(builder: BlendedMegatronDatasetBuilder, config: PretrainConfig) -> list[SampleDataset | None]:
    try:
        return builder.build()
    except IndexError as error:
        raise DataError(
            f"a blend that draws more from a prefix than was built for it ({error})",
            "a few more samples per prefix than the weights ask for",
            "make the weights less extreme",
        ) from error
    except Exception as error:
        if isinstance(error.__cause__, DataError):  # stock wraps what building made-up data raises
            raise error.__cause__ from None
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        place = config.data.data_cache_path or "the folders beside the data (no --data-cache-path)"
        raise DataError(
            f"{cause.strerror or cause} while the sample index was written to {place}",
            "a folder with room that this user may write to",
            "name one by --data-cache-path, on storage that all hosts share",
        ) from error


def _index_builders(uncached: bool) -> int:
    """See `RoomyConfig`. Without a cache every rank that reads data builds its own index; then collective."""
    if not uncached or not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return 1
    mine = socket.gethostname() if _reads_data() else ""
    hosts = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(hosts, mine)
    return hosts.count(mine) if torch.distributed.get_rank() == 0 else 1


def _reads_data() -> bool:
    """Whether this rank holds the embedding (which reads tokens) or the loss (which reads labels)."""
    if not parallel_state.model_parallel_is_initialized():
        return True
    first: Callable[..., bool] = parallel_state.is_pipeline_first_stage
    return first(ignore_virtual=True) or parallel_state.is_pipeline_last_stage(ignore_virtual=True)
