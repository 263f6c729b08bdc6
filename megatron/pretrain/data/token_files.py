"""Read and verify a `.bin/.idx` pair with numpy alone; the format is that of megatron/core/datasets/indexed_dataset.py.

A `.idx` file is, little-endian: magic (9 bytes), version 1 (u64), dtype code (u8), count of sequences (u64), count of
document borders (u64), then lengths in tokens (i32 each), byte offsets into `.bin` (i64 each), and borders (i64 each).
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from overlap_recompute.plan.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TOKEN_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
"""Integer dtype codes of the format; its codes 6 and 7 are floating point and hold no tokens."""

SAMPLED_SEQUENCES = 65536
"""Sequences whose offsets are compared with their lengths: all of a small file, evenly spread ones of a large one."""

SAMPLED_TOKENS = 65536
"""Tokens looked at, at the beginning and at the end of a file, for ids beyond the vocabulary."""

REMAKE = "make the pair again with tools/preprocess_data.py --overwrite, or copy it anew"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenFile:
    """An open pair whose two files were found to belong together. Nothing is read before it is used."""

    prefix: str
    """Path of the pair without `.bin` or `.idx`."""

    dtype: np.dtype
    """Type of one token."""

    lengths: npt.NDArray[np.int32]
    """[sequences] tokens of each sequence; one sequence is one document for a GPT."""

    offsets_bytes: npt.NDArray[np.int64]
    """[sequences] place of each sequence in `.bin`."""

    @property
    def documents(self) -> int:
        """Count of documents."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Count of tokens of all documents."""
        return self.tokens_between(0, self.documents)

    def tokens_between(self, begin: int, end: int) -> int:
        """Count of tokens of documents `begin` up to and not including `end`."""
        return (self._offset_bytes(end) - self._offset_bytes(begin)) // self.dtype.itemsize

    def token_array(self) -> npt.NDArray:
        """[tokens] all tokens, memory-mapped."""
        if self.tokens == 0:
            return np.zeros(0, self.dtype)
        return np.memmap(self.prefix + ".bin", dtype=self.dtype, mode="r", shape=(self.tokens,))

    def _offset_bytes(self, document: int) -> int:
        if document < self.documents:
            return int(self.offsets_bytes[document])
        return int(self.offsets_bytes[-1]) + int(self.lengths[-1]) * self.dtype.itemsize


def open_token_file(prefix: str) -> TokenFile:
    """Open a pair and verify it in constant time, whatever its size.

    Raises:
        DataError: a file is missing, is not what its name says, is cut short, or belongs to another pair.
    """
    index_path, bin_path = Path(prefix + ".idx"), Path(prefix + ".bin")
    for path in (index_path, bin_path):
        if not path.is_file():
            raise _missing(prefix, path)
    dtype, sequences, borders = _read_header(index_path)
    expected_bytes = HEADER.size + 12 * sequences + 8 * borders
    found_bytes = index_path.stat().st_size
    if found_bytes != expected_bytes:
        state = "truncated" if found_bytes < expected_bytes else "too long"
        raise DataError(
            f"{index_path}, which is {state}: {found_bytes} bytes",
            f"{expected_bytes} bytes for the {sequences} sequences and {borders} document borders its header counts",
            REMAKE,
        )
    if sequences == 0:
        raise DataError(f"{index_path}, which lists no documents", "at least one document", REMAKE)
    raw = np.memmap(index_path, dtype=np.uint8, mode="r")
    lengths_end, offsets_end = HEADER.size + 4 * sequences, HEADER.size + 12 * sequences
    file = TokenFile(
        prefix=prefix,
        dtype=dtype,
        lengths=raw[HEADER.size : lengths_end].view(np.int32),
        offsets_bytes=raw[lengths_end:offsets_end].view(np.int64),
    )
    _check_body(file, raw[offsets_end:].view(np.int64), index_path)
    promised_bytes, size_bytes = file.tokens * dtype.itemsize, bin_path.stat().st_size
    if size_bytes != promised_bytes:
        raise DataError(
            f"{bin_path} of {size_bytes} bytes",
            f"the {promised_bytes} bytes ({file.tokens} tokens of {dtype}) that {index_path} promises",
            f"the two files are not of one pair or one was cut short: {REMAKE}",
        )
    return file


def largest_sampled_token(file: TokenFile) -> int:
    """Largest id among the first and the last `SAMPLED_TOKENS` tokens; negative ids count as beyond any vocabulary."""
    tokens = file.token_array()
    sample = np.concatenate([tokens[:SAMPLED_TOKENS], tokens[-SAMPLED_TOKENS:]]).astype(np.int64)
    if sample.size == 0:
        return 0
    return int(sample.max()) if sample.min() >= 0 else int(np.iinfo(np.int64).max)


def unigram_entropy_nats(prefix: str) -> float:
    """Entropy of the distribution of single tokens, in nats per token.

    It is the loss of the best model that knows how often each token occurs and nothing of its context, so a model
    whose loss lies below it has learned from context.

    Args:
        prefix: path of the pair without `.bin` or `.idx`.

    Raises:
        DataError: the pair cannot be used; see `open_token_file`.
    """
    file = open_token_file(prefix)
    tokens, counts = file.token_array(), np.zeros(1, np.int64)
    for start in range(0, len(tokens), 1 << 24):
        part = np.bincount(tokens[start : start + (1 << 24)])
        if len(part) > len(counts):
            part, counts = counts, part
        counts[: len(part)] += part
    shares = counts[counts > 0] / max(1, len(tokens))
    return abs(float((shares * np.log(shares)).sum()))


def _missing(prefix: str, path: Path) -> DataError:
    hint = "check the path, or make the pair with tools/preprocess_data.py"
    if prefix.endswith((".bin", ".idx")):
        hint = f"give the prefix without its ending: {prefix[:-4]}"
    return DataError(f"no file {path}", f"the pair {prefix}.bin and {prefix}.idx", hint)


def _read_header(path: Path) -> tuple[np.dtype, int, int]:
    """Token dtype, count of sequences, count of document borders."""
    with path.open("rb") as stream:
        raw = stream.read(HEADER.size)
    if not raw.startswith(MAGIC[: len(raw)]) or not raw:
        raise DataError(f"{path}, which begins with {raw[:9]!r}", f"{MAGIC!r}, the mark of a token index", REMAKE)
    if len(raw) < HEADER.size:
        raise DataError(f"{path}, which is truncated: {len(raw)} bytes", f"a header of {HEADER.size} bytes", REMAKE)
    _, version, code, sequences, borders = HEADER.unpack(raw)
    if version != VERSION:
        raise DataError(f"{path} of format version {version}", f"version {VERSION}", REMAKE)
    if code not in TOKEN_DTYPES:
        known = ", ".join(f"{number} ({np.dtype(kind)})" for number, kind in TOKEN_DTYPES.items())
        raise DataError(f"{path} with token dtype code {code}", f"an integer type: {known}", REMAKE)
    return np.dtype(TOKEN_DTYPES[code]), sequences, borders


def _check_body(file: TokenFile, borders: npt.NDArray[np.int64], path: Path) -> None:
    """Compare offsets with lengths, in a sample, and the document borders with the count of sequences."""
    if len(borders) == 0 or borders[0] != 0 or borders[-1] != file.documents:
        found = "none" if len(borders) == 0 else f"from {borders[0]} to {borders[-1]}"
        raise DataError(f"{path} with document borders {found}", f"0 to {file.documents} sequences", REMAKE)
    sample = np.unique(np.linspace(0, file.documents - 1, min(file.documents, SAMPLED_SEQUENCES)).astype(np.int64))
    ends = file.offsets_bytes[sample] + file.lengths[sample].astype(np.int64) * file.dtype.itemsize
    followed = sample[sample < file.documents - 1]
    wrong = file.lengths[sample] < 0
    wrong[: len(followed)] |= ends[: len(followed)] != file.offsets_bytes[followed + 1]
    if file.offsets_bytes[0] != 0 or wrong.any():
        place = int(sample[int(wrong.argmax())])
        raise DataError(
            f"{path}, which is corrupt at document {place}: its length and its place in the .bin file disagree",
            "each document to begin where the one before ends",
            REMAKE,
        )
