"""Replays of a chunk and the windows they are in: an assignment that can be changed one job at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from overlap_recompute.planner.problem import ON_DEMAND

SLACK_US = 1e-9
"""Less than this is no gain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """Replays of one chunk, every one behind those that read it."""

    places: tuple[tuple[int, int], ...]
    """(layer of the problem, unit)."""
    times_us: tuple[float, ...]
    nbytes: tuple[int, ...]
    needs: tuple[int, ...]
    """First window that comes too late for backward: until then the bytes are held."""
    deadlines: tuple[int, ...]
    """The same with what reads it taken into account."""
    readers: tuple[int, ...]
    """Jobs that read it, as bits."""
    sources: tuple[int, ...]
    """Jobs that it reads, as bits."""


class Packed(NamedTuple):
    """An assignment."""

    exposed_us: float
    peak_bytes: int
    windows: tuple[int, ...]
    """Of each job, or ON_DEMAND."""


class Assignment:
    """An assignment that is being mended."""

    __slots__ = ("jobs", "windows", "room_us", "held", "_first", "_cap_bytes")

    def __init__(self, jobs: Jobs, lengths: Sequence[float], first: int, stop: int, cap_bytes: int) -> None:
        self.jobs, self._first, self._cap_bytes = jobs, first, cap_bytes
        self.windows = [ON_DEMAND] * len(jobs.times_us)
        self.room_us = list(lengths)
        self.held = [0] * (stop - first)

    def put(self, job: int, window: int) -> None:
        """Assign, or take away with ON_DEMAND."""
        old = self.windows[job]
        sign, at = (1, window) if window != ON_DEMAND else (-1, old)
        self.windows[job] = window
        self.room_us[at] -= sign * self.jobs.times_us[job]
        for place in range(at - self._first, self.jobs.needs[job] - self._first):
            self.held[place] += sign * self.jobs.nbytes[job]

    def complete(self) -> None:
        """What a placed job reads is placed as well, at no loss; where memory is short the reader goes."""
        for job in range(len(self.windows)):
            if self.windows[job] == ON_DEMAND and self._placed(self.jobs.readers[job]):
                window = self._best_window(job, -SLACK_US, forced=True)
                if window != ON_DEMAND:
                    self.put(job, window)
                else:
                    self._remove_readers(job)

    def fill_up(self) -> None:
        """Whatever is on demand and gains something in a window goes where it gains most."""
        for job in range(len(self.windows) - 1, -1, -1):
            if self.windows[job] == ON_DEMAND:
                window = self._best_window(job, SLACK_US, forced=False)
                if window != ON_DEMAND:
                    self.put(job, window)

    def relocate(self) -> bool:
        """Move single jobs to where they save more; whether any moved."""
        moved = False
        for job, window in enumerate(self.windows):
            if window == ON_DEMAND or self.room_us[window] >= 0:  # all of it is hidden
                continue
            self.put(job, ON_DEMAND)
            saved_us = max(0.0, min(self.room_us[window], self.jobs.times_us[job]))
            better = self._best_window(job, saved_us + SLACK_US, forced=False)
            self.put(job, window if better == ON_DEMAND else better)
            moved = moved or better != ON_DEMAND
        return moved

    def delay(self) -> bool:
        """Move jobs to later windows that save as much, so that bytes are held more briefly; whether any moved."""
        jobs, windows, room_us, moved = self.jobs, self.windows, self.room_us, False
        for job in sorted(range(len(windows)), key=windows.__getitem__, reverse=True):
            window = windows[job]
            if window == ON_DEMAND:  # as are those that follow
                break
            high = self._high(job)
            if high <= window + 1:
                continue
            time_us = jobs.times_us[job]
            saved_us = min(time_us, max(0.0, room_us[window] + time_us)) - SLACK_US
            for later in range(high - 1, window, -1):
                if room_us[later] >= saved_us:
                    self.put(job, ON_DEMAND)
                    self.put(job, later)
                    moved = True
                    break
        return moved

    def mend(self, passes: int) -> None:
        """Fill up, and move single jobs as long as that helps."""
        self.fill_up()
        for _ in range(passes):
            moved = self.relocate()
            moved = self.delay() or moved
            if not moved:
                break
            self.fill_up()

    def result(self) -> Packed:
        """Its price."""
        pairs = zip(self.jobs.times_us, self.windows, strict=True)
        exposed_us = sum(time_us for time_us, window in pairs if window == ON_DEMAND)
        exposed_us += sum(max(0.0, -left_us) for left_us in self.room_us)
        return Packed(exposed_us, max(self.held, default=0), tuple(self.windows))

    def _placed(self, jobs: int) -> list[int]:
        found = []
        while jobs:
            job = (jobs & -jobs).bit_length() - 1
            jobs &= jobs - 1
            if self.windows[job] != ON_DEMAND:
                found.append(job)
        return found

    def _remove_readers(self, job: int) -> None:
        for reader in self._placed(self.jobs.readers[job]):
            self.put(reader, ON_DEMAND)
            self._remove_readers(reader)

    def _best_window(self, job: int, least_us: float, *, forced: bool) -> int:
        """The latest window in which an unplaced job saves most time, more than `least_us`."""
        jobs, first, held, room_us = self.jobs, self._first, self.held, self.room_us
        sources = self._placed(jobs.sources[job])
        if not forced and len(sources) < jobs.sources[job].bit_count():
            return ON_DEMAND
        low = max([first, *[self.windows[source] for source in sources]])
        high, time_us = self._high(job), jobs.times_us[job]
        best, gain_us, most_bytes = ON_DEMAND, least_us, self._cap_bytes - jobs.nbytes[job]
        if high > low and max(held[high - 1 - first : jobs.needs[job] - first]) > most_bytes:
            return best
        for window in range(high - 1, low - 1, -1):
            if held[window - first] > most_bytes:
                break
            more_us = max(0.0, min(room_us[window], time_us))
            if more_us > gain_us:
                best, gain_us = window, more_us
                if more_us >= time_us:
                    break
        return best

    def _high(self, job: int) -> int:
        """The first window that comes too late for a job, and for those placed that read it."""
        high, readers = self.jobs.deadlines[job], self.jobs.readers[job]
        if readers:
            high = min([high, *[self.windows[reader] + 1 for reader in self._placed(readers)]])
        return high
