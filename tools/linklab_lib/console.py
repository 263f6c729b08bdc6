"""Output of several ranks on one terminal: whole lines, each with its rank, and no wait that cannot be interrupted."""

import os
import select
import time
from collections.abc import Callable

PIECE_BYTES = 4096
"""A pipe that polls as writable takes this much without blocking (PIPE_BUF)."""

MAX_LINE_BYTES = 1 << 16


class Console:
    """Writes to a descriptor, and gives up when asked to stop: a reader that has paused must not hold up the lab.

    Args:
        is_stopping: whether the lab is about to end.
        patience_s: how long, in all, to wait then for a reader that takes nothing.
    """

    def __init__(self, is_stopping: Callable[[], bool], patience_s: float = 1.0) -> None:
        self._is_stopping, self._patience_s = is_stopping, patience_s
        self._gives_up_s: float | None = None

    def write(self, descriptor: int, data: bytes) -> None:
        """Write all of `data`, or drop the rest once patience is at its end.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        waiter = select.poll()
        waiter.register(descriptor, select.POLLOUT)
        while data:
            if waiter.poll(0) or waiter.poll(self._wait_ms()):
                data = data[os.write(descriptor, data[:PIECE_BYTES]) :]
            elif self._gives_up_s is not None and time.monotonic() > self._gives_up_s:
                return

    def _wait_ms(self) -> int:
        if self._gives_up_s is None and self._is_stopping():
            self._gives_up_s = time.monotonic() + self._patience_s
        return 100 if self._gives_up_s is None or time.monotonic() < self._gives_up_s else 0


class LinePrefixer:
    """Cuts what one rank writes into lines and puts the rank in front of each.

    Args:
        prefix: what to put in front.
        write: takes whole lines.
    """

    def __init__(self, prefix: bytes, write: Callable[[bytes], None]) -> None:
        self._prefix, self._write, self._rest = prefix, write, b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes; empty means the end, and the rest becomes a line."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if self._rest and (not data or len(self._rest) > MAX_LINE_BYTES):
            lines.append(self._rest)
            self._rest = b""
        if lines:
            self._write(b"".join(self._prefix + line + b"\n" for line in lines))
