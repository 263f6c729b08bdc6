"""What is known of a run so far, and how it stands."""

import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from overlap_recompute.cli.watching.follow import News
from overlap_recompute.cli.watching.lines import (
    EXIT_EVENT,
    Evaluation,
    Event,
    Line,
    OtherSchema,
    Sample,
    Start,
    Unreadable,
    read_line,
)
from overlap_recompute.plan.errors import DataError

HELD_SAMPLES = 4096
"""Samples held; older ones are forgotten."""

SHORTEST_STALL_S = 5.0
"""A run whose lines come in quick succession is not called stalled before."""


class Standing(enum.Enum):
    """How the run stands."""

    NO_FILE = "no file"
    """The metrics file is not there yet."""
    STARTING = "starting"
    """It started, or resumed, and no iteration was logged since."""
    RUNNING = "running"
    """Iterations arrive."""
    STALLED = "stalled"
    """Nothing arrived for much longer than it should take."""
    STOPPED = "stopped"
    """It ended before its last iteration, and said so."""
    DONE = "done"
    """It reached its last iteration."""


ENDED = frozenset({Standing.STOPPED, Standing.DONE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """The run at one moment."""

    standing: Standing
    """How it stands."""
    age_s: float
    """Time since a line arrived (or, before the first one, since the watch began)."""
    due_s: float | None
    """Time between samples as it should be; None while it is not known."""
    starts: tuple[Start, ...]
    """The first start and the resumes."""
    samples: tuple[Sample, ...]
    """All that are held, oldest first."""
    current: tuple[Sample, ...]
    """Those since the last start or resume: only they are comparable."""
    evaluation: Evaluation | None
    """The last one."""
    event: Event | None
    """The last one."""
    unreadable: int
    """Lines that could not be read."""

    @property
    def latest(self) -> Sample | None:
        """The last sample, also one from before a resume."""
        return self.samples[-1] if self.samples else None


class History:
    """Takes in news of a metrics file. `glance` says what they amount to."""

    def __init__(self, name: str, *, stall_factor: float, now_s: float) -> None:
        """`name`: of the file, for messages. `stall_factor`: expected times between samples until a run is stalled."""
        self._name, self._stall_factor = name, stall_factor
        self._exists = False
        self._arrived_s = now_s
        self._forget()

    def _forget(self) -> None:
        self._starts: list[Start] = []
        self._samples: deque[Sample] = deque(maxlen=HELD_SAMPLES)
        self._current: deque[Sample] = deque(maxlen=HELD_SAMPLES)
        self._evaluation: Evaluation | None = None
        self._event: Event | None = None
        self._unreadable = 0

    def take(self, news: News, *, now_s: float, wall_s: float) -> None:
        """Take in what a look at the file has found.

        Args:
            news: the look.
            now_s: a clock that never jumps.
            wall_s: the clock of the file's time stamps.

        Raises:
            DataError: the file is no metrics file, or one of another version.
        """
        first_look = news.exists and not self._exists
        if news.restarted or first_look:
            self._forget()
        self._exists = news.exists
        for line in news.lines:
            self._one(line)
        self._unreadable += news.too_long
        if first_look:
            self._arrived_s = now_s - max(0.0, wall_s - news.changed_s)
        elif news.lines or news.restarted:
            self._arrived_s = now_s

    def _one(self, line: bytes) -> None:
        try:
            value = read_line(line)
        except OtherSchema as error:
            raise self._not_metrics(f"whose run line has the schema {error}") from None
        except Unreadable:
            value = None
            self._unreadable += 1
        if not self._starts and not isinstance(value, Start):
            raise self._not_metrics("whose first line does not describe a run")
        if value is not None:
            self._keep(value)

    def _keep(self, value: Line) -> None:
        if isinstance(value, Start):
            self._starts.append(value)
            self._current.clear()
            self._event = None
        elif isinstance(value, Sample):
            self._samples.append(value)
            self._current.append(value)
        elif isinstance(value, Evaluation):
            self._evaluation = value
        else:
            self._event = value

    def _not_metrics(self, fault: str) -> DataError:
        return DataError(
            f"the file {self._name}, {fault}",
            "a metrics file as pretrain_gpt.py writes it (docs/logging.md)",
            "name a run's folder, or its metrics file",
        )

    def glance(self, *, now_s: float) -> Glance:
        """The run as it stands now."""
        age_s = max(0.0, now_s - self._arrived_s)
        due_s = _time_between(self._current, self._starts[-1].start_iteration if self._starts else 0)
        return Glance(
            standing=self._standing(age_s, due_s),
            age_s=age_s,
            due_s=due_s,
            starts=tuple(self._starts),
            samples=tuple(self._samples),
            current=tuple(self._current),
            evaluation=self._evaluation,
            event=self._event,
            unreadable=self._unreadable,
        )

    def _standing(self, age_s: float, due_s: float | None) -> Standing:
        if not self._exists or not self._starts:
            return Standing.NO_FILE
        if self._event is not None and self._event.event == EXIT_EVENT:
            return Standing.STOPPED
        latest = self._samples[-1] if self._samples else None
        reached = max(self._current[-1].iteration if self._current else 0, self._starts[-1].start_iteration)
        if latest is not None and latest.train_iters is not None and reached >= latest.train_iters:
            return Standing.DONE
        if not self._current:
            return Standing.STARTING
        if due_s is not None and age_s > max(SHORTEST_STALL_S, self._stall_factor * due_s):
            return Standing.STALLED
        return Standing.RUNNING


def _time_between(samples: Iterable[Sample], start_iteration: int) -> float | None:
    """Seconds that should pass between two samples: median iterations between them times median iteration."""
    held = tuple(samples)
    times_ms = [sample.elapsed_ms for sample in held if sample.elapsed_ms is not None and sample.elapsed_ms >= 0]
    if not times_ms:
        return None
    steps = [after.iteration - before.iteration for before, after in zip(held, held[1:], strict=False)]
    steps = [step for step in steps if step > 0] or [max(1, held[0].iteration - start_iteration)]
    due_s = median(steps) * median(times_ms) / 1e3
    return due_s if due_s == due_s else None
