"""Signals that ask the lab to stop: noted, never raised in the middle of a step, and able to wake a waiting loop."""

import contextlib
import os
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Interrupted(Exception):
    """The lab was asked to stop before or between runs.

    Args:
        signal_number: the signal that asked.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopSignals:
    """Takes note of stop signals; use in a `with`, in the main thread.

    Attributes:
        received: their numbers, in order.
        wake_descriptor: becomes readable when one arrives.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.wake_descriptor, self._write_descriptor = os.pipe()
        for descriptor in (self.wake_descriptor, self._write_descriptor):
            os.set_blocking(descriptor, False)
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in STOP_SIGNALS:
            # A signal that is ignored stays ignored: nohup, and jobs that a shell puts in the background.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.close(self.wake_descriptor)
        os.close(self._write_descriptor)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_descriptor, b"!")

    def clear_wake(self) -> None:
        """Empty the pipe behind `wake_descriptor`."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_descriptor, 4096)

    def checkpoint(self) -> None:
        """Raise if a signal has arrived.

        Raises:
            Interrupted: with the first signal.
        """
        if self.received:
            raise Interrupted(self.received[0])
