"""A line on the terminal that says what is going on, and is gone at the end."""

import shutil
import sys
from types import TracebackType

_ERASE = "\r\033[K"


class StatusLine:
    """Writes over itself on standard error where that is a terminal; elsewhere it says nothing. Use it as a context."""

    def __init__(self) -> None:
        self._seen = sys.stderr.isatty()

    def show(self, text: object) -> None:
        """Put `text` in place of what stood there, cut to the width of the terminal."""
        if self._seen:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"{_ERASE}{str(text)[:width]}")
            sys.stderr.flush()

    def __enter__(self) -> "StatusLine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._seen:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
