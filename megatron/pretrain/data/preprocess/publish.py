"""Join finished shards to a `.bin/.idx` pair and put it in place in one step.

NOTE [ Order of the renames ]
1. Both files and the side-car are complete and on the disk, under temporary names, before anything is renamed.
2. A pair that is to be replaced loses its `.idx` first: without it nothing reads the old `.bin`.
3. `.bin` and `.meta.json` are renamed, then `.idx`. Whoever finds an `.idx` finds the pair that belongs to it.
4. The shards are removed last, so a run that is killed anywhere before can finish from them.
"""

import os
import shutil
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron.pretrain.data.preprocess.job import Job
from megatron.pretrain.data.preprocess.shards import ShardResult, disk_error, shard_paths
from megatron.pretrain.data.preprocess.workdir import WorkDir
from megatron.pretrain.data.sidecar import FORMAT, sidecar_path
from megatron.pretrain.data.token_files import unigram_entropy_nats
from overlap_recompute.plan.errors import DataError
from overlap_recompute.plan.files import sync_file, sync_folder, write_bytes


def publish_pair(job: Job, workdir: WorkDir, results: Sequence[ShardResult]) -> dict[str, Any]:
    """Write the pair of a job from its shards; see NOTE [ Order of the renames ].

    Returns:
        The content of the side-car.

    Raises:
        DataError: there are no documents, or the disk is full; the prefix then is as before.
    """
    if not any(result.documents for result in results):
        workdir.remove()
        example = next((f" ({example})" for result in results for example in result.examples), "")
        raise DataError(
            f"{sum(result.malformed for result in results)} malformed and {sum(result.empty for result in results)} "
            f"empty documents and no other in the input{example}",
            "at least one document with text",
            "check --input, --json-keys and --include",
        )
    final = str(workdir.folder / "final")
    try:
        _join(job, workdir, results, final)
        sidecar = _sidecar(job, results, final)
        write_bytes(sidecar_path(final), (dumps(sidecar, indent=1, sort_keys=True) + "\n").encode())
        for ending in (".bin", ".idx"):
            sync_file(Path(final + ending))
    except OSError as error:
        failure = disk_error(error, Path(final + ".bin"))
        for ending in (".bin", ".idx", ".meta.json"):
            Path(final + ending).unlink(missing_ok=True)
        raise failure from error
    Path(job.prefix + ".idx").unlink(missing_ok=True)
    for ending in (".bin", ".meta.json", ".idx"):
        sync_folder(workdir.folder.parent)
        os.replace(final + ending, job.prefix + ending)
    sync_folder(workdir.folder.parent)
    workdir.remove()
    return sidecar


def _join(job: Job, workdir: WorkDir, results: Sequence[ShardResult], final: str) -> None:
    """Write `final.bin` and `final.idx` through Megatron-Core's builder, as its own `add_index` does for pairs."""
    builder = IndexedDatasetBuilder(final + ".bin", dtype=np.dtype(job.recipe.dtype).type)
    for result in results:
        tokens_path, lengths_path = shard_paths(workdir.folder, result.number)
        with tokens_path.open("rb") as stream:
            shutil.copyfileobj(stream, builder.data_file, 1 << 20)
        first = len(builder.sequence_lengths)
        builder.sequence_lengths.extend(np.fromfile(lengths_path, np.int32).tolist())
        builder.document_indices.extend(range(first + 1, len(builder.sequence_lengths) + 1))
    builder.finalize(final + ".idx")


def _sidecar(job: Job, results: Sequence[ShardResult], final: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "job": job.identity,
        "tokenizer": job.tokenizer,
        "tokenizer_type": job.recipe.tokenizer.tokenizer_type,
        "vocab_size": job.vocab_size,
        "eod": job.eod,
        "append_eod": job.recipe.append_eod,
        "json_key": job.recipe.json_key,
        "dtype": job.recipe.dtype,
        "documents": sum(result.documents for result in results),
        "tokens": sum(result.tokens for result in results),
        "bytes": Path(final + ".bin").stat().st_size,
        "input_bytes": sum(result.input_bytes for result in results),
        "empty": sum(result.empty for result in results),
        "malformed": sum(result.malformed for result in results),
        "unigram_entropy_nats": unigram_entropy_nats(final),
    }
