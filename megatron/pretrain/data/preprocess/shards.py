"""Turn one shard into a file of tokens and a file of lengths. Runs in any process; loads no torch."""

import functools
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.pretrain.data.preprocess.documents import place, read_documents
from megatron.pretrain.data.preprocess.sources import Shard
from megatron.pretrain.data.tokenizers import Tokenizer, TokenizerChoice, load_tokenizer
from megatron.pretrain.data.tokenizers.base import Identity
from overlap_recompute.plan.errors import DataError
from overlap_recompute.plan.files import write_bytes

EXAMPLES = 5
"""Places of malformed input that a shard remembers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How text becomes tokens; with the sources it decides the output to the last bit."""

    tokenizer: TokenizerChoice
    """What to load in each process."""

    json_key: str
    """Key of the text in a JSON line."""

    append_eod: bool
    """Whether each document ends with the tokenizer's end-of-document id."""

    dtype: str
    """Numpy's name of the type of a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What came out of a shard; a line of the journal."""

    number: int
    documents: int
    tokens: int
    input_bytes: int
    empty: int
    """Documents without a token, which are left out."""

    malformed: int
    """Lines or files that hold no text, which are left out."""

    examples: tuple[str, ...]
    """The first few of them: file:line and the reason."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "ShardResult":
        return ShardResult(**{**content, "examples": tuple(content["examples"])})


def token_dtype(tokenizer: Tokenizer) -> str:
    """Smallest type that Megatron-Core's `DType.optimal_dtype` picks for a vocabulary."""
    return "uint16" if tokenizer.vocab_size < 65500 else "int32"


def shard_paths(folder: Path, number: int) -> tuple[Path, Path]:
    """Files of tokens and of lengths (int32) of a shard."""
    return folder / f"shard-{number:06d}.tokens", folder / f"shard-{number:06d}.lengths"


def is_intact(folder: Path, result: ShardResult, dtype: str) -> bool:
    """Whether both files of a finished shard are there in full."""
    sizes = (result.tokens * np.dtype(dtype).itemsize, result.documents * 4)
    paths = shard_paths(folder, result.number)
    return all(path.is_file() and path.stat().st_size == size for path, size in zip(paths, sizes, strict=True))


def tokenize_shard(recipe: Recipe, identity: Identity, shard: Shard, folder: Path) -> ShardResult:
    """Write the two files of a shard. Doing it twice gives the same files.

    Raises:
        DataError: a source or the tokenizer is not what it was at the start, or the disk is full.
    """
    tokenizer = _tokenizer_of_this_process(recipe.tokenizer)
    if tokenizer.unique_identifiers != identity:
        raise DataError("a tokenizer that changed while it was used", "the same files until the end", "run again")
    parts: list[npt.NDArray] = []
    examples: list[str] = []
    malformed = empty = 0
    for ids, complaint in _encoded(recipe, tokenizer, shard):
        if complaint:
            malformed += 1
            examples += [complaint] if len(examples) < EXAMPLES else []
        elif not ids:
            empty += 1
        else:
            parts.append(np.array(ids + [tokenizer.eod] * recipe.append_eod, dtype=recipe.dtype))
    tokens = np.concatenate(parts) if parts else np.zeros(0, recipe.dtype)
    lengths = np.array([len(part) for part in parts], dtype=np.int32)
    for path, array in zip(shard_paths(folder, shard.number), (tokens, lengths), strict=True):
        try:
            write_bytes(path, array.tobytes())
        except OSError as error:
            raise disk_error(error, path) from error
    return ShardResult(
        number=shard.number,
        documents=len(lengths),
        tokens=len(tokens),
        input_bytes=shard.input_bytes,
        empty=empty,
        malformed=malformed,
        examples=tuple(examples),
    )


def disk_error(error: OSError, path: Path) -> DataError:
    """Make the error for a file that could not be written."""
    folder = path.parent
    room = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize if folder.is_dir() else 0
    return DataError(
        f"{error.strerror or error} while {path} was written ({room >> 20} MiB free)",
        "room for about twice the size of the final .bin file",
        "make room and run the same command again: finished shards are kept",
    )


def _encoded(recipe: Recipe, tokenizer: Tokenizer, shard: Shard) -> Iterator[tuple[list[int], str]]:
    """Ids of every document, or a complaint with its place."""
    for piece in shard.pieces:
        for document in read_documents(piece, recipe.json_key):
            reason, ids = document.reason, []
            if document.text is not None:
                try:
                    ids = tokenizer.tokenize(document.text)
                except (ValueError, TypeError) as error:
                    reason = f"no tokens for it ({error})"
            yield ids, f"{place(piece, document)}: {reason}" if reason else ""


@functools.lru_cache(maxsize=1)
def _tokenizer_of_this_process(choice: TokenizerChoice) -> Tokenizer:
    return load_tokenizer(choice)
