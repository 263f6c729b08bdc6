"""Files that a command writes: refused before the work, not behind it."""

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from overlap_recompute.plan.errors import ConfigError, DataError
from overlap_recompute.plan.files import unwritable


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """Refuse paths that cannot be written, that are read by the same command, or that are given twice.

    Args:
        outputs: path by flag; None: nothing is written.
        inputs: what the command reads.

    Raises:
        DataError: no file can be created at a path.
        ConfigError: one output would replace an input or another output.
    """
    given = {flag: path for flag, path in outputs.items() if path is not None}
    taken = {_place(path): f"{path}, which is read as well" for path in inputs if path is not None and path.is_file()}
    for flag, path in given.items():
        fault = _fault(path)
        if fault:
            raise DataError(*unwritable(path, OSError(fault, os.strerror(fault))))
        if path.exists() and not path.is_file():
            continue  # a device or a pipe takes what comes
        if _place(path) in taken:
            raise ConfigError(f"{flag} {taken[_place(path)]}", "a file of its own", f"choose another path for {flag}")
        taken[_place(path)] = f"{path}, which {flag} names as well"


def _place(path: Path) -> str:
    return os.path.realpath(path)


def _fault(path: Path) -> int:
    """Number of the error that writing would meet, as far as that can be seen without trying; 0: none."""
    target = Path(_place(path))
    if target.is_dir():
        return errno.EISDIR
    if not target.parent.is_dir():
        return errno.ENOENT
    if target.exists() and not target.is_file():
        return 0
    return 0 if os.access(target.parent, os.W_OK | os.X_OK) else errno.EACCES
