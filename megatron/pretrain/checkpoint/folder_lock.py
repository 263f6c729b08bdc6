"""One run at a time saves into a folder: the lock that its first rank holds.

NOTE [ why a record lock ]
A record lock (POSIX, `lockf`) belongs to the process: forked writers and data loaders do not inherit it, so that it is
free as soon as the run is gone, however it ended, and a file left behind means nothing. On NFS it holds between hosts.
"""

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from overlap_recompute.plan.errors import CheckpointError

LOCK_NAME = ".lock"
WAIT_S = 10.0
"""A killed process may need seconds to give back its memory, and its locks with it."""
POLL_S = 0.25

logger = logging.getLogger(__name__)


class FolderLock:
    """Keeps other runs from saving into a folder, from `acquire` to `release`.

    Args:
        root: the folder; made when it is missing.
        wait_s: how long to wait for a run that is about to end.
    """

    def __init__(self, root: Path, wait_s: float = WAIT_S) -> None:
        self._root, self._wait_s = root, wait_s
        self._stack = contextlib.ExitStack()

    def acquire(self) -> None:
        """Take the lock; where the file system has none, go on without it.

        Raises:
            CheckpointError: another run holds it.
            OSError: the folder cannot be written.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(_open(self._root / LOCK_NAME, self._wait_s))

    def release(self) -> None:
        """Give it back; does nothing without it."""
        self._stack.close()


@contextlib.contextmanager
def _open(path: Path, wait_s: float) -> Iterator[None]:
    with path.open("ab") as stream:
        deadline_s = time.monotonic() + wait_s
        while not _taken(stream.fileno(), path):
            if time.monotonic() > deadline_s:
                raise CheckpointError(
                    found=f"another run that saves into {path.parent} (it holds {path.name} there)",
                    expected="a folder that no other run writes to",
                    next_step="end the other run, or choose another --save",
                )
            time.sleep(POLL_S)
        yield


def _taken(descriptor: int, path: Path) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        logger.warning(
            "%s cannot be locked (%s): see that no other run saves there", path, os.strerror(error.errno or 0)
        )
    return True
