"""Follow a file that grows, one whole line at a time."""

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

CHUNK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a look at the file has found."""

    lines: tuple[bytes, ...] = ()
    """Whole lines that were not there before, without their ends."""
    restarted: bool = False
    """The file is another one, or was cut: `lines` begins at its first line, and what was read before is void."""
    too_long: int = 0
    """Lines left out because they pass `LONGEST_LINE_BYTES`."""
    exists: bool = True
    """Whether there is a file."""
    changed_s: float = 0.0
    """When the file was last written to, by its own clock (`time.time`)."""


class Follower:
    """Reads what is appended to a file. Use it as a context, or call `close`.

    NOTE [ following a metrics file ]
    1. A last line without an end is being written, or is what a killed run has left: it is not consumed, so that a
       writer that cuts it off again, or ends it, does no harm.
    2. A resume replaces the file. The old one stays open here, so its inode number cannot be given to the new one, and
       comparing the numbers is safe.
    3. A file that is shorter than what was read was cut: it is read anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO | None = None
        self._read_bytes = 0
        self._skipping = False

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def look(self) -> News:
        """Return the lines that were appended since the last look.

        Raises:
            OSError: the file is there and cannot be read.
        """
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            gone = self._stream is not None
            self._begin(None)
            return News(exists=False, restarted=gone)
        restarted = self._is_other(found)
        if restarted or self._stream is None:
            try:
                self._begin(self._path.open("rb"))
            except FileNotFoundError:  # replaced between the two calls: the next look finds the new one
                return News(exists=False, restarted=restarted)
        lines, too_long = self._take()
        return News(lines=lines, restarted=restarted, too_long=too_long, changed_s=found.st_mtime)

    def _begin(self, stream: BinaryIO | None) -> None:
        self.close()
        self._stream, self._read_bytes, self._skipping = stream, 0, False

    def _is_other(self, found: os.stat_result) -> bool:
        if self._stream is None:
            return False
        held = os.fstat(self._stream.fileno())
        return (held.st_dev, held.st_ino) != (found.st_dev, found.st_ino) or found.st_size < self._read_bytes

    def _take(self) -> tuple[tuple[bytes, ...], int]:
        assert self._stream is not None
        self._stream.seek(self._read_bytes)
        lines: list[bytes] = []
        too_long, rest = 0, b""
        while chunk := self._stream.read(CHUNK_BYTES):
            *whole, rest = (rest + chunk).split(b"\n")
            self._read_bytes += sum(len(line) + 1 for line in whole)
            if whole and self._skipping:
                whole, self._skipping = whole[1:], False
            lines += whole
            if len(rest) > LONGEST_LINE_BYTES:
                too_long += not self._skipping
                self._read_bytes, rest, self._skipping = self._read_bytes + len(rest), b"", True
        return tuple(lines), too_long
