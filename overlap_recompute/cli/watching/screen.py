"""A terminal as a picture that is redrawn in place, and the way back to a clean one."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn, TextIO

from overlap_recompute.cli.watching.frame import FrameLine, Style

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_RESET = "\x1b[0m"


def can_redraw(out: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `out` is a terminal that understands cursor movement."""
    return out.isatty() and environment.get("TERM", "") not in ("", "dumb")


def wants_colour(out: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour: on a terminal, unless NO_COLOR says no (https://no-color.org)."""
    return can_redraw(out, environment) and not environment.get("NO_COLOR")


def columns() -> int:
    """Width of the terminal; 80 where nobody knows."""
    return shutil.get_terminal_size((80, 24)).columns


def as_text(lines: Sequence[FrameLine], *, colour: bool) -> str:
    """The picture as plain lines."""
    return "".join(_styled(line, colour) + "\n" for line in lines)


def _styled(line: FrameLine, colour: bool) -> str:
    return f"\x1b[{line.style.value}m{line.text}{_RESET}" if colour and line.style is not Style.PLAIN else line.text


class Screen:
    """Draws on the terminal's second screen, so that what stood there before comes back.

    On leaving, the cursor is shown again, and the last picture is left below what stood there.
    """

    def __init__(self, out: TextIO, *, colour: bool) -> None:
        self._out, self._colour = out, colour
        self._last: tuple[FrameLine, ...] = ()

    def __enter__(self) -> "Screen":
        self._write(_ENTER)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._write(_LEAVE + as_text(self._last, colour=self._colour))

    def draw(self, lines: tuple[FrameLine, ...]) -> None:
        """Draw over the last picture. Lines that do not fit go; the last ones, with the alarms, stay."""
        self._last = lines
        rows = max(2, shutil.get_terminal_size((80, 24)).lines)
        if len(lines) > rows:
            alarms = [line for line in lines if line.style is Style.BAD][: rows - 1]
            lines = (*lines[: rows - max(1, len(alarms))], *(alarms or lines[-1:]))
        body = (_END_OF_LINE + "\n").join(_styled(line, self._colour) for line in lines)
        self._write(_HOME + body + _END_OF_LINE + _END_OF_SCREEN)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that whoever holds the terminal gives it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
