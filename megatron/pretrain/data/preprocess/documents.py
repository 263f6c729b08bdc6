"""The documents of a piece: their text, or why there is none."""

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from megatron.pretrain.data.preprocess.sources import Piece
from overlap_recompute.plan.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document, or a place where one should have been."""

    offset_bytes: int
    """Where it begins in its file."""

    text: str | None
    """None: malformed."""

    reason: str = ""
    """What is wrong, when malformed."""


def read_documents(piece: Piece, json_key: str) -> Iterator[Document]:
    """Yield the documents of a piece in order; blank lines are none.

    Raises:
        DataError: the file cannot be read or is no longer the one that was planned.
    """
    try:
        with open(piece.path, "rb") as stream:
            size_bytes = stream.seek(0, 2)
            if size_bytes != piece.file_bytes:
                raise DataError(
                    f"{piece.path} of {size_bytes} bytes, which changed while it was read",
                    f"{piece.file_bytes} bytes, as at the start",
                    "let nobody write to it and run again",
                )
            yield from _READERS[piece.kind](stream, piece, json_key)
    except OSError as error:
        raise DataError(f"{piece.path}: {error.strerror}", "a readable file", "check it and run again") from error


def place(piece: Piece, document: Document) -> str:
    """Name the place of a document as file:line. Counts lines from the start of the file, so keep it for complaints."""
    if piece.kind == "file":
        return f"{piece.path}:1"
    line, left_bytes = 1, document.offset_bytes
    with open(piece.path, "rb") as stream:
        while left_bytes > 0 and (part := stream.read(min(1 << 20, left_bytes))):
            line += part.count(b"\n")
            left_bytes -= len(part)
    return f"{piece.path}:{line}"


def _whole_file(stream: BinaryIO, piece: Piece, json_key: str) -> Iterator[Document]:
    del json_key
    stream.seek(0)
    yield _decoded(stream.read(), 0, piece)


def _text_lines(stream: BinaryIO, piece: Piece, json_key: str) -> Iterator[Document]:
    del json_key
    for offset, raw in _raw_lines(stream, piece):
        yield _decoded(raw, offset, piece)


def _json_lines(stream: BinaryIO, piece: Piece, json_key: str) -> Iterator[Document]:
    for offset, raw in _raw_lines(stream, piece):
        decoded = _decoded(raw, offset, piece)
        yield decoded if decoded.text is None else _from_json(decoded.text, offset, json_key)


_READERS: dict[str, Callable[[BinaryIO, Piece, str], Iterator[Document]]] = {
    "file": _whole_file,
    "lines": _text_lines,
    "json_lines": _json_lines,
}


def _raw_lines(stream: BinaryIO, piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Lines that begin inside the piece, without their ends, and where they begin."""
    offset = piece.begin_bytes
    if offset > 0:
        # From one byte earlier to the next line's start: nothing is skipped when a line begins right at the border.
        stream.seek(offset - 1)
        offset += len(stream.readline()) - 1
    else:
        stream.seek(0)
    while offset < piece.end_bytes and (raw := stream.readline()):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        if line.strip():
            yield offset, line
        offset += len(raw)


def _decoded(raw: bytes, offset: int, piece: Piece) -> Document:
    if offset == 0:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return Document(offset_bytes=offset, text=raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        what = "file" if piece.kind == "file" else "line"
        return Document(offset_bytes=offset, text=None, reason=f"byte {error.start} of the {what} is not UTF-8")


def _from_json(line: str, offset: int, json_key: str) -> Document:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Document(offset_bytes=offset, text=None, reason=f"not JSON ({error})")
    text = value.get(json_key) if isinstance(value, dict) else None
    if isinstance(text, str):
        return Document(offset_bytes=offset, text=text)
    found = f"{type(text).__name__} under" if isinstance(value, dict) and json_key in value else "no"
    return Document(offset_bytes=offset, text=None, reason=f"{found} key {json_key!r}")
