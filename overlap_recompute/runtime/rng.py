"""Random numbers of replays: the same as in the forward pass, and no trace left behind (docs/runtime.md, R6)."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from overlap_recompute.ops.comparisons import same_memory

CPU_STATE_BYTES = torch.default_generator.get_state().numel()


class RngProvider(Protocol):
    """A source of randomness that units may draw from, such as a generator or a tracker of several.

    `get` is called before and after every dropped unit, so it must be cheap and must not copy what it can share.
    """

    def get(self) -> Any:
        """The current state."""
        ...

    def set(self, state: Any) -> None:
        """Go to a state that `get` returned; the state stays valid."""
        ...

    def same(self, first: Any, second: Any) -> bool:
        """Whether two states are equal, that is, whether nothing was drawn in between."""
        ...


RngStates = list[tuple[RngProvider, Any]]


class CpuRng:
    """Torch's default CPU generator, which is shared by the whole process."""

    __slots__ = ("get", "set")

    def __init__(self) -> None:
        self.get: Callable[[], torch.Tensor] = torch.default_generator.get_state
        self.set: Callable[[torch.Tensor], Any] = torch.default_generator.set_state

    def same(self, first: torch.Tensor, second: torch.Tensor) -> bool:
        """Whether nothing was drawn. A state has 5 kB, and `torch.equal` compares it byte by byte in 4 us."""
        return same_memory(first.data_ptr(), second.data_ptr(), CPU_STATE_BYTES)


class CudaRng:
    """The default generator of a CUDA device: counter-based, so seed and offset are the whole state."""

    __slots__ = ("_generator",)

    def __init__(self, generator: torch.Generator) -> None:
        """`generator`: one of `torch.cuda.default_generators`, or anything with the same four methods."""
        self._generator = generator

    def get(self) -> tuple[int, int]:
        """(seed, offset); no copy between device and host."""
        return self._generator.initial_seed(), self._generator.get_offset()

    def set(self, state: tuple[int, int]) -> None:
        """Restore seed and offset."""
        seed, offset = state
        if self._generator.initial_seed() != seed:
            self._generator.manual_seed(seed)
        self._generator.set_offset(offset)

    def same(self, first: tuple[int, int], second: tuple[int, int]) -> bool:
        """Whether nothing was drawn."""
        return first == second


class RngKeeper:
    """Takes the states before a unit, keeps those that the unit changed, and replays with them."""

    __slots__ = ("_cpu", "_providers", "_others", "_devices")

    def __init__(self, providers: Iterable[RngProvider]) -> None:
        """`providers` come on top of the CPU generator and of the CUDA generators that `watch` adds."""
        self._cpu = CpuRng()
        self._providers: tuple[RngProvider, ...] = (self._cpu, *providers)
        self._others = len(self._providers) > 1
        self._devices: set[int] = set()

    def watch(self, device: torch.device) -> None:
        """Include the default generator of `device`; nothing to do for a CPU."""
        if device.type != "cuda":
            return
        index = torch.cuda.current_device() if device.index is None else device.index
        if index not in self._devices:
            torch.cuda.init()
            self._devices.add(index)
            self._providers = (*self._providers, CudaRng(torch.cuda.default_generators[index]))
            self._others = True

    def snapshot(self) -> RngStates:
        """The states of all sources."""
        if self._others:
            return [(provider, provider.get()) for provider in self._providers]
        return [(self._cpu, self._cpu.get())]

    def changed(self, before: RngStates, now: RngStates) -> RngStates | None:
        """The part of `before` that differs from `now`; None when nothing was drawn in between."""
        # Sources are only ever added, at the end: the two lists agree as far as the shorter one goes.
        if len(before) == 1:
            provider, state = before[0]
            return None if provider.same(state, now[0][1]) else before
        found: RngStates | None = None
        for position, drawn in enumerate(before):
            if not drawn[0].same(drawn[1], now[position][1]):
                found = [drawn] if found is None else [*found, drawn]
        return found

    def enter(self, drawn: RngStates) -> RngStates:
        """Go back to the states of the forward pass; returns what `leave` restores."""
        present = [(provider, provider.get()) for provider, _ in drawn]
        self.leave(drawn)
        return present

    def leave(self, states: RngStates) -> None:
        """Set the states."""
        for provider, state in states:
            provider.set(state)
