"""Write a file whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path` through a temporary file beside it: a reader sees the old file or the new one.

    The file gets the permission bits that an ordinary new file would get. Its content is on the disk before its name
    is; add `sync_folder` where the name must be, too.

    Raises:
        OSError: it could not be written; what was at `path` is as before.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_if_changed(path: Path, content: bytes) -> bool:
    """As `write_whole`, but leave a file alone that already holds `content`, so that its time stamp stays.

    Returns:
        Whether the file was written.
    """
    if path.is_file() and path.read_bytes() == content:
        return False
    write_whole(path, content)
    return True


def sync_file(path: Path) -> None:
    """Wait until the content of `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` (creations, renames) are on the disk."""
    sync_file(folder)


def _umask() -> int:
    mask = os.umask(0o077)  # the only way to read it; a file made meanwhile by another thread is too private at worst
    os.umask(mask)
    return mask
