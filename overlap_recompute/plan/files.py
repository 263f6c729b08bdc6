"""Files that appear whole or not at all: a reader sees the old content or the new, never half of it."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from overlap_recompute.plan.errors import DataError


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a new file beside `path` and put it in its place; keeps the permission bits of the one it replaces.

    The content is on the disk before the name is; add `sync_folder` where the name must be, too. A link stays, and the
    file that it names is replaced. A device or a pipe is written to: another file in its place would break the machine.

    Args:
        path: the file to create or to replace; its folder must exist.
        write: called once with the open file.

    Raises:
        OSError: it could not be written; what was at `path` is as before.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            write(stream)
        return
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            stream.flush()
            os.fchmod(stream.fileno(), _mode_for(path))
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path`; see `replace_file`."""
    replace_file(path, lambda stream: stream.write(content))


def write_text_file(path: Path, text: str) -> None:
    """Put `text` at `path` as UTF-8, line ends as they are; see `replace_file`."""
    write_bytes(path, text.encode())


def save_text(path: Path, text: str) -> None:
    """As `write_text_file`, for a path that a user gave.

    Raises:
        DataError: it cannot be written.
    """
    try:
        write_text_file(path, text)
    except OSError as error:
        raise DataError(*unwritable(path, error)) from error


def unwritable(path: Path, error: OSError) -> tuple[str, str, str]:
    """What a `UserError` says about a path that a user gave and that cannot be written."""
    return (
        f"the file {path}, which cannot be written ({error.strerror or error})",
        "a path in a folder that exists and may be written to",
        "choose another path or create the folder",
    )


def write_if_changed(path: Path, content: bytes) -> bool:
    """As `write_bytes`, but leave a file alone that already holds `content`, so that its time stamp stays.

    Returns:
        Whether the file was written.
    """
    if path.is_file() and path.read_bytes() == content:
        return False
    write_bytes(path, content)
    return True


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` (creations, renames) are on the disk."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Wait until the content of `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mode_for(path: Path) -> int:
    """Mode bits of the file at `path`, or what a new file gets; `mkstemp` alone would make it private."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0o077)  # the only way to read it; other threads meanwhile create files that are too private
        os.umask(mask)
        return 0o666 & ~mask
