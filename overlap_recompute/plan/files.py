"""Write a text file in one step: a reader sees the old one or the new one, never half of it."""

import contextlib
import os
import tempfile
from pathlib import Path


def write_text_file(path: Path, text: str) -> None:
    """Write `text` beside `path` and put it in its place; keeps the permission bits of the file it replaces.

    Args:
        path: the file to create or to replace; its folder must exist.
        text: written as UTF-8, line ends as they are.

    Raises:
        OSError: it could not be written; what was at `path` is as before.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fchmod(stream.fileno(), _mode_for(path))
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _mode_for(path: Path) -> int:
    """Mode bits of the file at `path`, or what a new file gets; `mkstemp` alone would make it private."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0o077)  # the only way to read it; other threads meanwhile create files that are too private
        os.umask(mask)
        return 0o666 & ~mask
