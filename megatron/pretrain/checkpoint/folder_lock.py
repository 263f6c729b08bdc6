"""One run at a time saves into a folder: the lock that its first rank holds."""

import contextlib
from pathlib import Path

from overlap_recompute.plan.errors import CheckpointError
from overlap_recompute.plan.file_lock import WAIT_S, locked

LOCK_NAME = ".lock"


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
        refusal = CheckpointError(
            found=f"another run that saves into {self._root} (it holds {LOCK_NAME} there)",
            expected="a folder that no other run writes to",
            next_step="end the other run, or choose another --save",
        )
        self._stack.enter_context(locked(self._root / LOCK_NAME, refusal=refusal, wait_s=self._wait_s))

    def release(self) -> None:
        """Give it back; does nothing without it."""
        self._stack.close()
