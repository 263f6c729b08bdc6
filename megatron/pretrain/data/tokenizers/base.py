"""What a tokenizer is, how one is chosen, and how its files are read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from overlap_recompute.plan.errors import DataError

Identity = dict[str, str | int]
"""What tells one tokenizer from another: its kind, its size and a hash of its files' content (not their place)."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Count of ids, end-of-document included: every id is below it."""

    @property
    def eod(self) -> int:
        """Id that ends a document."""

    @property
    def unique_identifiers(self) -> Identity:
        """JSON-able identity; Megatron-Core puts it into the names of its index caches."""

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text`, without an end-of-document id.

        Raises:
            ValueError: the text has no ids (a lone surrogate; for bare token numbers: no number).
        """

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of `ids`; parts of a character that was cut become U+FFFD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerChoice:
    """The options that name a tokenizer; small and picklable, so that worker processes load their own."""

    tokenizer_type: str
    """One of `TOKENIZER_TYPES`."""

    tokenizer_model: str | None = None
    """File of the model, or the folder that holds it."""

    vocab_size: int | None = None
    """Count of bare token numbers (NullTokenizer)."""

    vocab_file: str | None = None
    """`vocab.json` of GPT2BPETokenizer."""

    merge_file: str | None = None
    """`merges.txt` of GPT2BPETokenizer."""


def require_model(choice: TokenizerChoice, what: str) -> Path:
    """Return the path that `--tokenizer-model` gives.

    Raises:
        DataError: it was not given.
    """
    if choice.tokenizer_model is None:
        raise DataError(
            f"--tokenizer-type {choice.tokenizer_type} without --tokenizer-model", what, "name it by --tokenizer-model"
        )
    return Path(choice.tokenizer_model)


def read_model_file(path: Path, what: str, flag: str = "--tokenizer-model") -> bytes:
    """Read a tokenizer's file whole.

    Raises:
        DataError: it is missing, unreadable or empty.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{flag} {path}: {error.strerror}", what, f"check the path that {flag} gives") from error
    if not content:
        raise corrupt_model(path, "the file is empty", what, flag)
    return content


def corrupt_model(path: Path, reason: object, what: str, flag: str = "--tokenizer-model") -> DataError:
    """Make the error for a file that is there but is not what it should be."""
    first_line = str(reason).strip().splitlines()[0] if str(reason).strip() else "unreadable"
    return DataError(
        f"{flag} {path}, which cannot be used: {first_line}", what, "restore the file or choose another tokenizer"
    )


def content_hash(*contents: bytes) -> str:
    """SHA-256 over the files of a tokenizer, in order; a length before each keeps the borders apart."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()
