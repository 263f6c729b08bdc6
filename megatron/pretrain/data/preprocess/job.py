"""One output pair: its sources, recipe and identity, and what a run finds of it on disk."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron.pretrain.data.preprocess.shards import Recipe, token_dtype
from megatron.pretrain.data.preprocess.sources import Shard, SourceFile, cut_into_shards
from megatron.pretrain.data.preprocess.workdir import WorkDir
from megatron.pretrain.data.sidecar import read_sidecar
from megatron.pretrain.data.token_files import open_token_file
from megatron.pretrain.data.tokenizers import TokenizerChoice, load_tokenizer
from megatron.pretrain.data.tokenizers.base import Identity
from overlap_recompute.plan.errors import DataError

JOB_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that decides a pair, and how the work on it is divided."""

    prefix: str
    """Path of the pair without `.bin` or `.idx`."""

    recipe: Recipe
    """How text becomes tokens."""

    tokenizer: Identity
    """Identity of the tokenizer, by the content of its files."""

    eod: int
    vocab_size: int

    identity: str
    """Hash of sources (path, size, time of change), recipe and tokenizer: two jobs with the same make the same pair."""

    shards: tuple[Shard, ...]

    parts_identity: str
    """Hash of `identity` and of the size of the shards: finished shards can be kept only if it is the same."""

    def workdir(self) -> WorkDir:
        """Where the unfinished work is kept."""
        return WorkDir(self.prefix, self.recipe.dtype)


def plan_job(
    sources: Sequence[SourceFile],
    *,
    prefix: str,
    tokenizer: TokenizerChoice,
    json_key: str = "text",
    append_eod: bool = False,
    shard_bytes: int = 8 << 20,
) -> Job:
    """Load the tokenizer, cut the sources into shards, and derive the identity of the job.

    Raises:
        DataError: the tokenizer cannot be used.
    """
    loaded = load_tokenizer(tokenizer)
    recipe = Recipe(tokenizer=tokenizer, json_key=json_key, append_eod=append_eod, dtype=token_dtype(loaded))
    identity = _hash(
        {
            "version": JOB_VERSION,
            "sources": [asdict(source) for source in sources],
            "json_key": json_key,
            "append_eod": append_eod,
            "tokenizer": loaded.unique_identifiers,
        }
    )
    return Job(
        prefix=prefix,
        recipe=recipe,
        tokenizer=loaded.unique_identifiers,
        eod=loaded.eod,
        vocab_size=loaded.vocab_size,
        identity=identity,
        shards=cut_into_shards(sources, shard_bytes),
        parts_identity=_hash({"job": identity, "shard_bytes": shard_bytes}),
    )


def is_complete(job: Job) -> bool:
    """Whether the pair of this very job is already in place and sound."""
    try:
        sidecar = read_sidecar(job.prefix)
        return sidecar is not None and sidecar.get("job") == job.identity and open_token_file(job.prefix).documents > 0
    except DataError:
        return False


def refuse_to_replace(job: Job) -> None:
    """Check that the run would not destroy anything.

    Raises:
        DataError: there is another pair at the prefix, or another job's unfinished work.
    """
    pending = job.workdir().job()
    if pending is not None and pending != job.parts_identity:
        raise DataError(
            f"unfinished work of another job in {job.workdir().folder}",
            "the same inputs, tokenizer and options as those it was begun with",
            "run that command again to finish it, or add --overwrite to discard it",
        )
    # A .bin alone is what a run leaves that was killed between its two renames; its shards are then still there.
    endings = (".idx", ".bin") if pending is None else (".idx",)
    existing = next((job.prefix + end for end in endings if Path(job.prefix + end).exists()), None)
    if existing is not None:
        raise DataError(
            f"{existing} made from other inputs, with another tokenizer or by another tool",
            "a prefix without a pair",
            "choose another --output-prefix, or add --overwrite to replace it",
        )


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
