"""The last lines of a rank, written so that a stuck main thread cannot hold them back, and the end of its process."""

import contextlib
import faulthandler
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

FLUSH_S = 2.0
ACTS_S = 1.0


def program_name() -> str:
    """Name of the running script, for the beginning of a message."""
    return os.path.basename(sys.argv[0]) or "python"


def say(rank: int, text: str) -> None:
    """Write one line to standard error, past Python's buffer and its lock."""
    line = f"{program_name()}: rank {rank}: {text}\n".encode(errors="replace")
    try:
        while line:
            line = line[os.write(2, line) :]
    except OSError:
        return  # nobody can read it


def whereabouts(thread: threading.Thread) -> str:
    """Where a thread is now, outside Python's library and installed packages: "loop.py:70 in run".

    faulthandler writes the stack in one go; walking the frames of a running thread from Python is not safe.
    """
    try:
        with tempfile.TemporaryFile() as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
            stream.seek(0)
            dump = stream.read().decode(errors="replace")
    except (OSError, ValueError):
        return "an unknown place"
    stack = next((part for part in dump.split("\n\n") if f"0x{thread.ident or 0:016x} " in part.split("\n")[0]), "")
    frames = re.findall(r'File "(.*)", line (\d+) in (.*)', stack)
    own = [frame for frame in frames if not _is_installed(frame[0])] or frames or [("?", "?", "?")]
    path, line, function = own[0]
    return f"{os.path.basename(path)}:{line} in {function}"


def _is_installed(path: str) -> bool:
    return "site-packages" in path or path.startswith(("<", os.path.dirname(os.__file__) + os.sep))


class LastActs:
    """What others want done before this process is ended while its main thread is stuck.

    It is done on a thread of its own and takes `ACTS_S` at most: whatever hangs or raises there holds nothing up.
    """

    def __init__(self) -> None:
        self._acts: list[Callable[[str], object]] = []

    @contextlib.contextmanager
    def added(self, act: Callable[[str], object]) -> Iterator[None]:
        """Within, `act` is one of them; it is told why the process ends."""
        self._acts.append(act)
        try:
            yield
        finally:
            self._acts.remove(act)

    def run(self, why: str) -> None:
        """Do them, in the order in which they were added."""
        thread = threading.Thread(target=self._run, args=(why,), name="last-acts", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread can be started any more
            thread.start()
            thread.join(ACTS_S)

    def _run(self, why: str) -> None:
        for act in tuple(self._acts):
            with contextlib.suppress(Exception):  # the process ends, and has said why
                act(why)


def leave(code: int) -> NoReturn:
    """End this process now, without waiting for anybody: buffers are flushed, destructors do not run.

    A process group that lost a rank cannot be destroyed in order; its destructors may wait for ever.
    """
    flush = threading.Thread(target=_flush, daemon=True)  # a thread that is stuck in a write holds the buffer's lock
    flush.start()
    flush.join(FLUSH_S)
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
