"""What a person sees while a run goes on: log lines and, on a terminal, a progress bar below them."""

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TextIO

from megatron.pretrain.logs.lines import evaluation_line, event_line, iteration_line, overlap_lines, timer_lines
from megatron.pretrain.logs.optional import is_installed, load
from megatron.pretrain.logs.records import EvaluationRecord, EventRecord, IterationRecord, Record

OWN_LOGGERS = ("megatron.pretrain", "megatron.overlap", "overlap_recompute")
"""Loggers that speak at the chosen level; others (torch, megatron.core, ...) only warn."""

_CLEAR_LINE = "\r\x1b[K"
_logger = logging.getLogger(__name__)


class RankFormatter(logging.Formatter):
    """ "[2026-01-31 12:00:00 rank 3/4] WARNING: message"; without the rank when there is only one.

    On a terminal a line first clears the one it is written on: a bar that another rank has drawn may stand there.
    """

    def __init__(self, rank: int, world_size: int, *, terminal: bool) -> None:
        rank_part = f" rank {rank}/{world_size}" if world_size > 1 else ""
        super().__init__(f"[%(asctime)s{rank_part}]%(level)s %(message)s", "%Y-%m-%d %H:%M:%S")
        self._clear = _CLEAR_LINE if terminal else ""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        record.level = f" {record.levelname}:" if record.levelno >= logging.WARNING else ""
        return self._clear + super().format(record)


class _RunHandler(logging.StreamHandler[TextIO]):
    """The handler that `configure_logging` installs; its type tells it from other people's."""


def configure_logging(rank: int, world_size: int, level: int | None = None, stream: TextIO | None = None) -> None:
    """Send Python's `logging` to standard output, each line with the rank it comes from. May be called again.

    The first and the last rank (the last one knows the loss) log from `level` on, others from WARNING on, so that a
    message that all ranks log is not repeated a thousand times. With DEBUG every rank logs all, and libraries from
    INFO on.

    Args:
        rank: of this process.
        world_size: number of ranks.
        level: `--logging-level`, such as logging.INFO; INFO when None.
        stream: where to; standard output when None, as Megatron-LM's log.
    """
    chosen = logging.INFO if level is None else level
    debug = chosen <= logging.DEBUG
    target = sys.stdout if stream is None else stream
    handler = _RunHandler(target)
    handler.setFormatter(RankFormatter(rank, world_size, terminal=target.isatty()))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _RunHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO if debug else max(chosen, logging.WARNING))
    speaks = debug or rank in (0, world_size - 1)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(chosen if speaks else max(chosen, logging.WARNING))


class LineSink:
    """Logs every record as a line of text."""

    name = "log lines"

    def __init__(self, *, device_type: str, throughput: bool) -> None:
        self._device_type, self._throughput = device_type, throughput
        self._writers: Mapping[type, Callable[[Any], None]] = {
            IterationRecord: self._iteration,
            EvaluationRecord: lambda record: _logger.info(evaluation_line(record)),
            EventRecord: lambda record: _logger.info(event_line(record)),
        }

    def write(self, record: Record) -> None:
        """Log the record."""
        self._writers[type(record)](record)

    def advance(self, iteration: int) -> None:
        """Nothing to do between records."""

    def close(self) -> None:
        """Nothing to close."""

    def _iteration(self, record: IterationRecord) -> None:
        line = iteration_line(record, device_type=self._device_type, throughput=self._throughput)
        _logger.info("\n".join((line, *overlap_lines(record), *timer_lines(record))))


class ProgressBarSink:
    """A bar with the time left and the loss; log lines are written above it."""

    name = "progress bar"

    def __init__(self, *, train_iters: int, start_iteration: int) -> None:
        tqdm = load("tqdm", wanted_by="--progress-bar on", package="tqdm")
        redirect = load("tqdm.contrib.logging", wanted_by="--progress-bar on", package="tqdm")
        self._bar = tqdm.tqdm(
            total=train_iters, initial=start_iteration, desc="training", unit="it", dynamic_ncols=True, file=sys.stderr
        )
        self._stack = ExitStack()
        self._stack.callback(self._bar.close)
        self._stack.enter_context(redirect.logging_redirect_tqdm())

    def write(self, record: Record) -> None:
        """Show the latest loss."""
        if isinstance(record, IterationRecord):
            if record.loss is not None:
                self._bar.set_postfix_str(f"loss {record.loss:.4f}", refresh=False)
            self.advance(record.iteration)

    def advance(self, iteration: int) -> None:
        """Move the bar; draws at most ten times a second."""
        self._bar.update(max(0, iteration - self._bar.n))

    def close(self) -> None:
        """Leave the bar as it stands and give the log lines back to their handler."""
        self._stack.close()


def wants_progress_bar(choice: str) -> bool:
    """Whether to draw a bar.

    Args:
        choice: `--progress-bar`: "on", "off", or "auto": when both output streams are a terminal, for lines that pass
            through a pipe would come out in the middle of it, and tqdm is installed.
    """
    on_terminal = sys.stdout.isatty() and sys.stderr.isatty() and is_installed("tqdm")
    return {"on": True, "off": False, "auto": on_terminal}[choice]
