"""Streams that compute nothing late, but know what a device could do: a detector of races between lane and compute.

Every operation ticks the clock of its stream, an event carries the clocks of its stream, and a stream that waits for it
knows them, too (vector clocks). An operation may read what was written before only if its stream
knows of the writing, write only if it knows of all readers, and take memory from its stream's pool only if it knows of
all who used what lay there: torch's allocator hands out freed memory at once.
"""

import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = dict[str, int]


class RaceError(AssertionError):
    """Two streams that nothing orders."""


class ClockedEvent:
    """Carries what its stream had done."""

    def __init__(self, streams: "ClockedStreams") -> None:
        self.streams = streams
        self.clock: Clock = {}

    def query(self) -> bool:
        if self.streams.chance.random() >= self.streams.passing:
            return False
        # What the host has seen is over, for whatever is launched from now on.
        self.streams.finished(self.clock)
        return True


class ClockedStreams:
    """`compute`, `lane` and `other`.

    Args:
        passing: probability that an event that the host asks has passed.
    """

    def __init__(self, seed: int = 0, passing: float = 0.0) -> None:
        self.chance, self.passing = random.Random(seed), passing
        self.stack = ["compute"]
        self.clocks: dict[str, Clock] = {name: {} for name in ("compute", "lane", "other")}

    def current(self) -> str:
        return self.stack[-1]

    def create(self, *, high_priority: bool) -> str:
        return "lane"

    def event(self) -> ClockedEvent:
        return ClockedEvent(self)

    def record(self, event: ClockedEvent, stream: str) -> None:
        event.clock = dict(self.clocks[stream])

    def wait(self, stream: str, event: ClockedEvent) -> None:
        known = self.clocks[stream]
        for name, time in event.clock.items():
            known[name] = max(known.get(name, 0), time)

    def finished(self, clock: Clock) -> None:
        event = ClockedEvent(self)
        event.clock = clock
        for stream in self.clocks:
            self.wait(stream, event)

    def finish(self, stream: str) -> None:
        self.finished(self.clocks[stream])

    @contextmanager
    def use(self, stream: str) -> Iterator[None]:
        self.stack.append(stream)
        try:
            yield
        finally:
            self.stack.pop()

    def follow(self, stream: str, leader: str) -> None:
        """What torch's `Stream.wait_stream` does."""
        event = self.event()
        self.record(event, leader)
        self.wait(stream, event)

    def tick(self) -> tuple[str, int]:
        """An operation on the current stream: the stream and its time."""
        clock = self.clocks[self.current()]
        clock[self.current()] = clock.get(self.current(), 0) + 1
        return self.current(), clock[self.current()]

    def knows(self, stream: str, done: tuple[str, int]) -> bool:
        return self.clocks[stream].get(done[0], 0) >= done[1]


class Uses:
    """Who used the memory of one storage, and when."""

    def __init__(self, storage: Any, pool: str | None, races: "Races") -> None:
        self.pool, self.operation = pool, "what was there before"
        self.write: tuple[str, int] | None = None
        self.reads: Clock = {}
        self.ref = weakref.ref(storage, lambda _: races.freed(self))

    def all(self) -> list[tuple[str, int]]:
        return [*self.reads.items(), *([self.write] if self.write is not None else [])]


class Races(TorchDispatchMode):
    """Watches all operations while it is active; `checks` counts what it looked at.

    Raises:
        RaceError: in the operation that comes too early.
    """

    def __init__(self, streams: ClockedStreams) -> None:
        super().__init__()
        self.streams, self.checks = streams, 0
        self._uses: dict[int, Uses] = {}
        self._free: dict[str, list[Uses]] = {}

    def freed(self, uses: Uses) -> None:
        """A storage died: its memory is in its pool again."""
        if uses.pool is not None:
            self._free.setdefault(uses.pool, []).append(uses)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        aliases = [(a.alias_info, v) for a, v in zip(func._schema.arguments, args, strict=False) if a.alias_info]
        written = {t.untyped_storage()._cdata for info, v in aliases if info.is_write for t in _tensors(v)}
        if aliases and not written:
            return func(*args, **kwargs)  # a view touches no memory
        stream, time = self.streams.tick()
        given = {t.untyped_storage()._cdata: t.untyped_storage() for t in _tensors((args, kwargs))}
        for key, storage in given.items():
            self._use(str(func), self._of(storage), stream, time, key in written)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            if tensor.untyped_storage()._cdata not in given:
                for uses in self._free.pop(stream, []):
                    self._expect(f"{func} takes memory of {uses.operation}", stream, uses.all())
                uses = self._of(tensor.untyped_storage(), stream)
                uses.write, uses.operation = (stream, time), str(func)
        return result

    def _use(self, operation: str, uses: Uses, stream: str, time: int, writes: bool) -> None:
        if not writes:
            self._expect(f"{operation} reads {uses.operation}", stream, [uses.write] if uses.write else [])
            uses.reads[stream] = time
            return
        self._expect(f"{operation} overwrites {uses.operation}", stream, uses.all())
        uses.write, uses.operation = (stream, time), operation

    def _expect(self, what: str, stream: str, before: list[tuple[str, int]]) -> None:
        for done in before:
            self.checks += 1
            if not self.streams.knows(stream, done):
                raise RaceError(f"{what} on {stream}, without an event behind {done[0]}")

    def _of(self, storage: Any, pool: str | None = None) -> Uses:
        uses = self._uses.get(storage._cdata)
        if uses is None or uses.ref() is not storage:
            uses = self._uses[storage._cdata] = Uses(storage, pool, self)
        return uses


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
