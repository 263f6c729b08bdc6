"""Moments in a run: on the host, or on the device where the host runs ahead of it."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

NS_PER_US = 1000
US_PER_MS = 1000.0


class Clock(Protocol):
    """Stamps moments cheaply, and says later when they were."""

    def stamp(self) -> Any:
        """This moment."""
        ...

    def times_us(self, stamps: Sequence[Any]) -> list[float]:
        """When the stamps were made, in microseconds from the first one; may wait for the device."""
        ...


class HostClock:
    """Where the host computes: `time.perf_counter_ns`."""

    def __init__(self) -> None:
        self.stamp = time.perf_counter_ns

    def times_us(self, stamps: Sequence[int]) -> list[float]:
        """See `Clock`."""
        return [(stamp - stamps[0]) / NS_PER_US for stamp in stamps]


class DeviceClock:
    """Where a GPU computes: an event on the current stream is a moment of that stream, not of the host.

    A window is then the time that the compute stream waits for the communication stream. Events are used again.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[Any] = []

    def stamp(self) -> Any:
        """See `Clock`."""
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def times_us(self, stamps: Sequence[Any]) -> list[float]:
        """See `Clock`; the events are free for other moments then."""
        if not stamps:
            return []
        torch.cuda.synchronize(self._device)
        times = [stamps[0].elapsed_time(stamp) * US_PER_MS for stamp in stamps]
        self._free.extend(stamps)
        return times


def clock_of(device: torch.device) -> Clock:
    """The clock for a device that computes."""
    return DeviceClock(device) if device.type == "cuda" else HostClock()
