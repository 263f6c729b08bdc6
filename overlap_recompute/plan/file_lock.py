"""One run at a time: a lock that a process holds on a file.

NOTE [ why a record lock ]
A record lock (POSIX, `lockf`) belongs to the process: forked writers and data loaders do not inherit it, so that it is
free as soon as the run is gone, however it ended, and a file left behind means nothing. On NFS it holds between hosts.
It is lost when the process closes any descriptor of the file, so the file serves for nothing else.
"""

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from overlap_recompute.plan.errors import UserError

WAIT_S = 10.0
"""A killed process may need seconds to give back its memory, and its locks with it."""
POLL_S = 0.25

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, *, refusal: UserError, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the lock within; where the file system has none, go on without it, with a warning.

    Args:
        path: the file; made when it is missing, and left behind.
        refusal: what is raised when another process holds it.
        wait_s: how long to wait for a process that is about to end.

    Raises:
        UserError: `refusal`.
        OSError: the file cannot be written.
    """
    with path.open("ab") as stream:
        deadline_s = time.monotonic() + wait_s
        while not _taken(stream.fileno(), path):
            if time.monotonic() > deadline_s:
                raise refusal
            time.sleep(POLL_S)
        yield


def _taken(descriptor: int, path: Path) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        logger.warning(
            "%s cannot be locked (%s): see that no other run writes there", path, os.strerror(error.errno or 0)
        )
    return True
