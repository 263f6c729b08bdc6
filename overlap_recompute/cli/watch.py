"""`overlap-recompute watch`: a run as a live picture, as JSON lines, and as a page for Prometheus."""

import argparse
import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.parser import whole_number
from overlap_recompute.cli.watching.alarms import Alarm, Rules, find_alarms
from overlap_recompute.cli.watching.drawing import charset_of
from overlap_recompute.cli.watching.endpoint import Endpoint
from overlap_recompute.cli.watching.exposition import exposition
from overlap_recompute.cli.watching.follow import Follower
from overlap_recompute.cli.watching.frame import LEAST_WIDTH, FrameLine, draw
from overlap_recompute.cli.watching.history import ENDED, Glance, History
from overlap_recompute.cli.watching.screen import Screen, as_text, can_redraw, columns, ended_by_signals, wants_colour
from overlap_recompute.cli.watching.texts import DESCRIPTION, EPILOG, FLAGS, POSITIONAL
from overlap_recompute.cli.watching.update import as_line, as_update
from overlap_recompute.plan.errors import ConfigError, DataError

METRICS_FILE_NAME = "metrics.jsonl"
QUIET, ALARMED = 0, 1
LARGEST_PORT = 65535
LONGEST_INTERVAL_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watch:
    """What the flags ask for."""

    path: Path
    rules: Rules
    stall_factor: float
    interval_s: float
    once: bool
    until_done: bool
    json: bool
    width: int | None
    port: int | None
    host: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; values stay text until they are checked in the house form."""
    parser.add_argument("run_dir", **POSITIONAL)
    for flag, keywords in FLAGS.items():
        parser.add_argument(flag, **keywords)


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Watch until told otherwise; the status says whether an alarm stood at the end."""
    watch = _watch(options, out)
    with ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        follower = stack.enter_context(Follower(watch.path))
        endpoint = None
        if watch.port is not None:
            endpoint = stack.enter_context(Endpoint(watch.host, watch.port))
        history = History(str(watch.path), stall_factor=watch.stall_factor, now_s=time.monotonic())
        look = _looker(watch, follower, history)
        found = look()  # what cannot be read at all is said before the terminal changes
        note = _note(endpoint)
        if watch.json and note:
            sys.stderr.write(note + "\n")
        show = _shower(watch, out, note, stack)
        while True:
            glance, alarms = found
            if endpoint is not None:
                endpoint.publish(exposition(_name(watch), glance, alarms))
            ends = watch.once or (watch.until_done and glance.standing in ENDED)
            show(glance, alarms, ends)
            if ends:
                return ALARMED if alarms else QUIET
            time.sleep(watch.interval_s)
            found = look()


def _watch(options: argparse.Namespace, out: TextIO) -> _Watch:
    port = None if options.prometheus_port is None else whole_number("--prometheus-port", options.prometheus_port, 0)
    if port is not None and port > LARGEST_PORT:
        raise ConfigError(
            f"--prometheus-port {port}", f"at most {LARGEST_PORT}", "choose a port, or 0 for any free one"
        )
    lasts = options.json or options.until_done or port is not None
    return _Watch(
        path=_metrics_path(Path(options.run_dir)),
        rules=Rules(
            threshold=_real("--alarm-threshold", options.alarm_threshold, 0.001),
            window=whole_number("--alarm-window", options.alarm_window, 1),
        ),
        stall_factor=_real("--stall-factor", options.stall_factor, 1.0),
        interval_s=_real("--interval-s", options.interval_s, 0.05, LONGEST_INTERVAL_S),
        once=options.once or not (lasts or can_redraw(out)),
        until_done=options.until_done,
        json=options.json,
        width=whole_number("--width", options.width, LEAST_WIDTH) if options.width else None,
        port=port,
        host=options.prometheus_host,
    )


def _real(flag: str, text: str, least: float, most: float = math.inf) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and least <= number <= most):
        bounds = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
        raise ConfigError(f"{flag} {text}", f"a number of {bounds}", f"correct {flag}")
    return number


def _metrics_path(run: Path) -> Path:
    if run.is_dir():
        return run / METRICS_FILE_NAME
    if run.is_file() or (run.suffix == ".jsonl" and run.parent.is_dir()):
        return run
    raise DataError(
        f"no folder and no file {run}", f"a run's folder that holds {METRICS_FILE_NAME}, or the file", "correct RUN_DIR"
    )


def _looker(watch: _Watch, follower: Follower, history: History) -> Callable[[], tuple[Glance, tuple[Alarm, ...]]]:
    def look() -> tuple[Glance, tuple[Alarm, ...]]:
        try:
            news = follower.look()
        except OSError as error:
            raise DataError(
                f"the metrics file {watch.path}, which cannot be read ({error.strerror})",
                "a file that you may read",
                "correct its permissions, or RUN_DIR",
            ) from error
        if watch.once and not news.exists:
            raise DataError(
                f"no metrics file at {watch.path}",
                "the folder or file that --save or --metrics-file of the run names",
                "correct RUN_DIR, or wait until the run has started",
            )
        now_s = time.monotonic()
        history.take(news, now_s=now_s, wall_s=time.time())
        glance = history.glance(now_s=now_s)
        return glance, find_alarms(glance, watch.rules)

    return look


Show = Callable[[Glance, tuple[Alarm, ...], bool], None]


def _shower(watch: _Watch, out: TextIO, note: str, stack: ExitStack) -> Show:
    """How to show a look: as JSON, on a terminal, or as lines in somebody's log."""
    if watch.json:
        return _json_shower(watch, out)
    charset, colour = charset_of(out.encoding), wants_colour(out)

    def picture(glance: Glance, alarms: tuple[Alarm, ...]) -> tuple[FrameLine, ...]:
        width = watch.width or columns()
        lines = draw(_name(watch), glance, alarms, window=watch.rules.window, width=width, charset=charset)
        return (*lines, FrameLine(text=note[:width])) if note else lines

    if not watch.once and can_redraw(out):
        screen = stack.enter_context(Screen(out, colour=colour))
        return lambda glance, alarms, ends: screen.draw(picture(glance, alarms))
    said: list[str] = []

    def show(glance: Glance, alarms: tuple[Alarm, ...], ends: bool) -> None:
        if ends:
            out.write(as_text(picture(glance, alarms), colour=colour))
        else:
            _say_changes(out, said, [glance.standing.value, *(f"ALARM {alarm.name}" for alarm in alarms)], note, alarms)
        out.flush()

    return show


def _say_changes(out: TextIO, said: list[str], now: list[str], note: str, alarms: tuple[Alarm, ...]) -> None:
    """For a log: a line when the standing or the set of alarms changes."""
    if not said and note:
        out.write(note + "\n")
    if now != said:
        said[:] = now
        messages = [f"ALARM {alarm.message}" for alarm in alarms] or ["no alarm"]
        out.write(f"{now[0]}: {'; '.join(messages)}\n")


def _json_shower(watch: _Watch, out: TextIO) -> Show:
    held: list[object] = [None]

    def show(glance: Glance, alarms: tuple[Alarm, ...], ends: bool) -> None:
        update = as_update(_name(watch), glance, alarms)
        # The age in a stall's message grows by itself; that is no change.
        content = {**update, "age_s": None, "alarms": [alarm.name for alarm in alarms]}
        if content != held[0]:
            held[0] = content
            out.write(as_line(update))
            out.flush()

    return show


def _name(watch: _Watch) -> str:
    return str(watch.path.parent if watch.path.name == METRICS_FILE_NAME else watch.path)


def _note(endpoint: Endpoint | None) -> str:
    if endpoint is None:
        return ""
    open_to = "WARNING: other machines can read " if endpoint.is_open_to_others else ""
    return f"{open_to}{endpoint.url}"


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
