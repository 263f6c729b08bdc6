"""The last lines of a rank, written so that a stuck main thread cannot hold them back, and the end of its process."""

import os
import sys
import threading
import traceback
from types import FrameType
from typing import NoReturn

FLUSH_S = 2.0


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
    """Where a thread is now, in code that is not an installed package: "loop.py:70 run"."""
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame) if frame is not None else []
    own = [entry for entry in stack if "site-packages" not in entry.filename] or stack
    return f"{os.path.basename(own[-1].filename)}:{own[-1].lineno} {own[-1].name}" if own else "an unknown place"


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
