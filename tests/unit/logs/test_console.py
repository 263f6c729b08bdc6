"""What appears on a terminal, and what in a pipe."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron.pretrain.logs.console import OWN_LOGGERS, LineSink, configure_logging, wants_progress_bar
from tests.unit.logs.samples import EVALUATION, EVENT, iteration

ROOT = Path(__file__).resolve().parents[3]
STAMP = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
LOGGER = logging.getLogger("megatron.pretrain.somewhere")

# A run of three iterations in which a library and a second rank speak up between bar updates.
SESSION = """
import logging, sys
from megatron.pretrain.logs.console import LineSink, ProgressBarSink, configure_logging, wants_progress_bar
from megatron.pretrain.logs.run_log import RunLog
from tests.unit.logs.samples import iteration
configure_logging(3, 4)
sinks = [LineSink(device_type="cpu", throughput=True)]
if wants_progress_bar("auto"):
    sinks.append(ProgressBarSink(train_iters=3, start_iteration=1))
with RunLog(sinks) as log:
    for number in (2, 3):
        log.advance(number)
        logging.getLogger("some.library").warning("speaks up")
        log.record(iteration(number, train_iters=3))
logging.getLogger("megatron.pretrain").info("after the end")
"""


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    names = (None, *OWN_LOGGERS)
    handlers, levels = list(root.handlers), {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def spoken(rank: int, world_size: int, level: int | None = None) -> str:
    stream = io.StringIO()
    configure_logging(rank, world_size, level, stream)
    LOGGER.debug("d")
    LOGGER.info("i")
    LOGGER.warning("w")
    logging.getLogger("other").info("i of others")
    logging.getLogger("other").warning("w of others")
    return re.sub(STAMP, "[T", stream.getvalue())


def test_first_and_last_rank_inform_others_only_warn() -> None:
    assert spoken(3, 4) == "[T rank 3/4] i\n[T rank 3/4] WARNING: w\n[T rank 3/4] WARNING: w of others\n"
    assert spoken(0, 4).startswith("[T rank 0/4] i\n")
    assert spoken(1, 4) == "[T rank 1/4] WARNING: w\n[T rank 1/4] WARNING: w of others\n"


def test_a_single_rank_does_not_name_itself() -> None:
    assert spoken(0, 1).startswith("[T] i\n")


def test_levels() -> None:
    assert spoken(1, 4, logging.DEBUG).count("\n") == 5
    assert spoken(3, 4, logging.WARNING) == "[T rank 3/4] WARNING: w\n[T rank 3/4] WARNING: w of others\n"
    assert spoken(3, 4, logging.ERROR) == ""


def test_configuring_again_does_not_double_lines() -> None:
    stream = io.StringIO()
    configure_logging(0, 4, stream=stream)
    configure_logging(0, 1, stream=stream)
    LOGGER.info("i")
    assert re.sub(STAMP, "[T", stream.getvalue()) == "[T] i\n"


def test_every_kind_of_record_is_a_line() -> None:
    stream = io.StringIO()
    configure_logging(0, 1, stream=stream)
    sink = LineSink(device_type="cpu", throughput=False)
    for record in (iteration(2, timers_ms={"optimizer": 1.0}), EVALUATION, EVENT):
        sink.write(record)
    lines = [re.sub(STAMP + r"\] ", "", line) for line in stream.getvalue().splitlines()]
    assert [line[:29] for line in lines] == [
        " iteration        2/     100 ",
        "max time across ranks (ms):",
        "    optimizer....: 1.00",
        " validation loss at iteration",
        " saved a checkpoint (iteratio",
    ]


def test_no_bar_without_a_terminal() -> None:
    assert [wants_progress_bar(choice) for choice in ("auto", "off", "on")] == [False, False, True]


def test_in_a_pipe_there_are_plain_lines_only() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SESSION], cwd=ROOT, capture_output=True, text=True, timeout=200, check=True
    )
    assert result.stderr == ""
    assert "\r" not in result.stdout
    assert "\x1b" not in result.stdout
    shapes = [re.sub(STAMP, "[T", line)[:40] for line in result.stdout.splitlines()]
    assert shapes == [
        "[T rank 3/4] WARNING: speaks up",
        "[T rank 3/4]  iteration        2/       ",
        "[T rank 3/4] WARNING: speaks up",
        "[T rank 3/4]  iteration        3/       ",
        "[T rank 3/4] after the end",
    ]


def test_on_a_terminal_lines_stand_above_the_bar() -> None:
    written = run_on_a_terminal(SESSION)
    assert len(re.findall(r"speaks up\r\n\r*training:", written)) == 2  # the bar is back at once
    screen = rendered(written)
    lines = [line for line in screen if line.startswith("[")]
    assert len(lines) == 5
    assert all(re.match(STAMP + r" rank 3/4\]", line) and "training:" not in line for line in lines)
    bars = [line for line in screen if "training:" in line]
    assert len(bars) == 1  # the last state; earlier ones were wiped out before a line took their place
    assert re.match(r"training: 100%.*\| 3/3 \[.*loss 8.3125", bars[0])


def run_on_a_terminal(code: str) -> str:
    """Everything a program writes when both its output streams are a terminal of 250 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 250, 0, 0))  # rows and columns
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    written, deadline_s = b"", time.monotonic() + 120
    try:
        while time.monotonic() < deadline_s:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            written += piece
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return written.decode()


def rendered(text: str) -> list[str]:
    """What a terminal shows in the end: a carriage return goes back to overwrite, ESC[K clears from there on."""
    return [line for raw in text.split("\n") if (line := _rendered_line(raw))]


def _rendered_line(raw: str) -> str:
    cells: list[str] = []
    column = 0
    for part in re.split(r"(\r|\x1b\[K)", raw):
        if part == "\r":
            column = 0
        elif part == "\x1b[K":
            del cells[column:]
        else:
            cells[column : column + len(part)] = part
            column += len(part)
    return "".join(cells).rstrip()
