"""The line that says what is going on."""

import contextlib
import io
import os

import pytest

from overlap_recompute.cli.status_line import StatusLine


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when Ctrl-C ends the work: what is printed next begins on a clean line."""
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((12, 24)))
    with contextlib.suppress(KeyboardInterrupt), StatusLine() as line:
        line.show("planning mix+partition")
        raise KeyboardInterrupt
    assert terminal.getvalue() == "\r\033[Kplanning mi\r\033[K"


def test_nothing_is_written_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusLine() as line:
        line.show("planning mix")
    assert capsys.readouterr().err == ""
