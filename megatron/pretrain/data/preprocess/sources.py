"""What is to be read: files found from the inputs, and their division into shards that do not depend on workers."""

import fnmatch
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from overlap_recompute.plan.errors import DataError

PieceKind = Literal["json_lines", "lines", "file"]
JSON_LINES_ENDINGS = (".jsonl", ".json", ".ndjson")
DEFAULT_INCLUDE = ("*.jsonl", "*.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file to read, as it was when the run was planned."""

    path: str
    """Absolute."""

    kind: PieceKind
    """JSON lines, a document per line, or a document as a whole."""

    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of a file. Of a file of lines it holds the lines that begin in [begin_bytes, end_bytes)."""

    path: str
    kind: PieceKind
    begin_bytes: int
    end_bytes: int
    file_bytes: int
    """Size that the whole file must still have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Pieces that one worker turns into tokens at a time: the unit of progress, of resuming and of parallel work."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def input_bytes(self) -> int:
        """Bytes of text to read."""
        return sum(piece.end_bytes - piece.begin_bytes for piece in self.pieces)


def find_sources(
    inputs: Sequence[str], *, include: Sequence[str] = DEFAULT_INCLUDE, split_lines: bool = False
) -> tuple[SourceFile, ...]:
    """List the files of the inputs, in the order of the inputs and inside a folder by path.

    Args:
        inputs: files, and folders to walk. Links to folders and hidden names (`.git`) below a folder are passed over.
        include: patterns for the file names in a folder; a file given by name needs none.
        split_lines: make every line of a text file a document, instead of the whole file.

    Raises:
        DataError: an input is missing or yields nothing.
    """
    found: list[SourceFile] = []
    for text in inputs:
        top = Path(text)
        paths = sorted(_walk(top, include), key=lambda path: path.parts) if top.is_dir() else [top]
        if not paths:
            raise DataError(
                f"no file that matches {', '.join(include)} in {top}", "files to read", "name others by --include"
            )
        found += [_source(path, split_lines=split_lines) for path in paths]
    return tuple(found)


def cut_into_shards(sources: Iterable[SourceFile], shard_bytes: int) -> tuple[Shard, ...]:
    """Divide the files, in order, into shards of about `shard_bytes` of text; only files of lines are cut."""
    shards: list[Shard] = []
    pieces: list[Piece] = []
    room_bytes = shard_bytes
    for piece in (piece for source in sources for piece in _cut(source, shard_bytes)):
        length_bytes = piece.end_bytes - piece.begin_bytes
        if pieces and length_bytes > room_bytes:
            shards.append(Shard(number=len(shards), pieces=tuple(pieces)))
            pieces, room_bytes = [], shard_bytes
        pieces.append(piece)
        room_bytes -= length_bytes
    if pieces:
        shards.append(Shard(number=len(shards), pieces=tuple(pieces)))
    return tuple(shards)


def _walk(top: Path, include: Sequence[str]) -> Iterable[Path]:
    for folder, folders, names in os.walk(top, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and any(fnmatch.fnmatchcase(name, one) for one in include) and path.is_file():
                yield path


def _refuse(error: OSError) -> None:
    raise DataError(f"--input {error.filename}: {error.strerror}", "a readable folder", "check it") from error


def _source(path: Path, *, split_lines: bool) -> SourceFile:
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"--input {path}: {error.strerror}", "a file or a folder", "check the path") from error
    kind: PieceKind = "lines" if split_lines else "file"
    if path.suffix in JSON_LINES_ENDINGS:
        kind = "json_lines"
    return SourceFile(path=os.path.abspath(path), kind=kind, size_bytes=state.st_size, modified_ns=state.st_mtime_ns)


def _cut(source: SourceFile, shard_bytes: int) -> Iterable[Piece]:
    step = max(1, source.size_bytes) if source.kind == "file" else shard_bytes
    for begin in range(0, max(1, source.size_bytes), step):
        yield Piece(
            path=source.path,
            kind=source.kind,
            begin_bytes=begin,
            end_bytes=min(begin + step, source.size_bytes),
            file_bytes=source.size_bytes,
        )
