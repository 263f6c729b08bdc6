"""How ranks came to an end, and when to end those that do not end by themselves."""

import signal
import time
from dataclasses import dataclass

TIMED_OUT_STATUS = 124


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """How one rank ended."""

    rank: int
    """Its rank."""

    host: int
    """Its host."""

    core: int | None
    """The core it was pinned to."""

    exit_status: int
    """As a shell counts: 128 + the signal's number for a rank that a signal ended."""

    stopped_by_lab: bool
    """The lab ended it, because the time was up or because another rank had failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How a run ended."""

    ranks: tuple[RankEnd, ...]
    """All ranks."""

    timed_out: bool
    """The time was up before all ranks had ended."""

    wall_s: float
    """From the first start to the last end."""

    @property
    def exit_status(self) -> int:
        """The worst of the ranks that ended by themselves; 124 after a timeout."""
        own = [end.exit_status for end in self.ranks if not end.stopped_by_lab]
        return TIMED_OUT_STATUS if self.timed_out else max(own, default=1)


class Ending:
    """Decides which signal the ranks get, and when.

    Args:
        timeout_s: after this the ranks are stopped.
        grace_s: what ranks get to end by themselves once another one has failed, and to end once told to stop.
    """

    def __init__(self, *, timeout_s: float, grace_s: float) -> None:
        self._grace_s = grace_s
        self._next: tuple[float, signal.Signals] | None = (time.monotonic() + timeout_s, signal.SIGTERM)
        self._has_failed = self._was_asked = False
        self.timed_out = False

    @property
    def is_labs_decision(self) -> bool:
        """Whether a signal that `due` returns is the lab's own decision, not one passed on from outside."""
        return not self._was_asked

    def asked_to_stop(self, number: int) -> int:
        """A stop signal has come from outside; returns the signal for the ranks: the same, and SIGKILL to insist."""
        insists, self._was_asked = self._was_asked, True
        self._next = (time.monotonic() + self._grace_s, signal.SIGKILL)
        return signal.SIGKILL if insists else number

    def rank_failed(self) -> None:
        """A rank has ended with an error: the others should follow soon. Later failures change nothing."""
        if not self._has_failed and not self._was_asked and self._next is not None:
            self._next = min(self._next, (time.monotonic() + self._grace_s, signal.SIGTERM))
        self._has_failed = True

    def wait_s(self) -> float | None:
        """How long nothing is due; None: nothing will be."""
        return None if self._next is None else max(0.0, self._next[0] - time.monotonic())

    def due(self) -> signal.Signals | None:
        """The signal that running ranks must get now."""
        if self._next is None or time.monotonic() < self._next[0]:
            return None
        number = self._next[1]
        told_to_stop = number == signal.SIGTERM
        self.timed_out |= told_to_stop and not self._has_failed
        self._next = (time.monotonic() + self._grace_s, signal.SIGKILL) if told_to_stop else None
        return number
