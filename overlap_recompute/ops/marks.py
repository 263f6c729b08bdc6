"""The always-on event ring behind traces: create one, mark, drain to numpy."""

import threading
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import numpy as np

from overlap_recompute.ops.native import extension
from overlap_recompute.plan.errors import UserError

# One mark; the layout of csrc/trace/mark.h. `stream` is the handle of the stream whose time this is, 0 for the host.
MARK = np.dtype(
    {
        "names": ["time_ns", "value", "stream", "name", "thread", "kind"],
        "formats": ["<i8", "<i8", "<u8", "<u4", "<u4", "<u4"],
        "offsets": [0, 8, 16, 24, 28, 32],
        "itemsize": 40,
    }
)
DEFAULT_CAPACITY = 1 << 16
MOST_CAPACITY = 1 << 30


class MarkKind(IntEnum):
    """What a mark says. In hot code bind `int(MarkKind.BEGIN)` to a local name once."""

    BEGIN = 0
    END = 1
    INSTANT = 2
    COUNTER = 3


class EventRing(Protocol):
    """A flight recorder: fixed memory, the newest marks win. Any thread may mark, one at a time drains."""

    def intern(self, name: str) -> int:
        """The number of a name; 0 is the empty name."""

    def mark(self, name: int, kind: int, value: int = 0, /) -> None:
        """Records the time (time.monotonic_ns), the calling thread and `value` (64 bits: a microbatch, bytes)."""

    def drain(self) -> np.ndarray:
        """The marks since the last call: [n] of `MARK`, in the order of time."""

    @property
    def names(self) -> Sequence[str]:
        """Names by number."""

    @property
    def threads(self) -> Sequence[int]:
        """Operating-system thread number by `thread` of a mark."""

    @property
    def capacity(self) -> int:
        """Marks kept for each thread."""

    @property
    def overwritten(self) -> int:
        """Marks lost because a ring was full."""


def event_ring(capacity: int = DEFAULT_CAPACITY) -> EventRing:
    """An event ring: the extension's, or one in Python.

    Args:
        capacity: marks kept for each thread, rounded up to a power of two; 32 bytes each, taken at its first mark.

    Raises:
        UserError: the capacity is not positive, or beyond reason.
    """
    if not 1 <= capacity <= MOST_CAPACITY:
        raise UserError(f"an event ring of {capacity} marks", f"1 to {MOST_CAPACITY}", "leave the capacity out")
    ring: EventRing = PythonEventRing(capacity) if extension is None else extension.EventRing(capacity)
    ring.intern("")
    return ring


class _ThreadRing:
    """The marks of one thread: written by it alone."""

    __slots__ = ("entries", "head", "index", "tail")

    def __init__(self, capacity: int, index: int) -> None:
        self.entries: list[tuple[int, int, int, int, int, int]] = [(0, 0, 0, 0, 0, 0)] * capacity
        self.head, self.tail, self.index = 0, 0, index


class PythonEventRing:
    """The same in Python, for installations without the extension."""

    def __init__(self, capacity: int) -> None:
        self._capacity = max(2, 1 << (capacity - 1).bit_length())
        self._lock = threading.Lock()
        self._own = threading.local()
        self._rings: list[_ThreadRing] = []
        self._threads: list[int] = []
        self._numbers: dict[str, int] = {}
        self._overwritten = 0

    def intern(self, name: str) -> int:
        with self._lock:
            return self._numbers.setdefault(name, len(self._numbers))

    def mark(self, name: int, kind: int, value: int = 0, /) -> None:
        try:
            ring: _ThreadRing = self._own.ring
        except AttributeError:
            ring = self._register()
        ring.entries[ring.head % self._capacity] = (time.monotonic_ns(), value, 0, name, ring.index, kind)
        ring.head += 1

    def _register(self) -> _ThreadRing:
        with self._lock:
            ring = _ThreadRing(self._capacity, len(self._threads))
            self._threads.append(threading.get_native_id())
            self._rings.append(ring)
        self._own.ring = ring
        return ring

    def drain(self) -> np.ndarray:
        marks: list[tuple[int, int, int, int, int, int]] = []
        with self._lock:
            for ring in self._rings:
                head = ring.head
                first = max(ring.tail, head - self._capacity)
                self._overwritten += first - ring.tail
                marks.extend(ring.entries[index % self._capacity] for index in range(first, head))
                ring.tail = head
        array = np.array(marks, dtype=MARK)
        return array[np.argsort(array["time_ns"], kind="stable")]

    @property
    def names(self) -> Sequence[str]:
        return list(self._numbers)

    @property
    def threads(self) -> Sequence[int]:
        return list(self._threads)

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def overwritten(self) -> int:
        return self._overwritten
