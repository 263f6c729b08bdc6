"""What a session marks in its event ring, traced or not: forward and backward passes, waits, replays."""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd import Variable

from megatron.overlap.settings import MicrobatchKey
from overlap_recompute.ops import EventRing, MarkKind
from overlap_recompute.plan.actions import Kind
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime import ReplayMarks

# Bound once: reading a member of an enumeration takes as long as half a mark.
BEGIN, END = int(MarkKind.BEGIN), int(MarkKind.END)
MICROBATCH_BITS = 32
UNIT_BITS = 16
_MICROBATCHES, MOST_UNITS = (1 << MICROBATCH_BITS) - 1, (1 << UNIT_BITS) - 1


class StepMarks:
    """Numbers every name once, so that a mark on the way builds no text and costs less than a microsecond.

    NOTE [ values of marks ]
    1. A pass: the name is F or B, the value says chunk and microbatch (`number_of`), at its begin and at its end.
    2. A wait: the name is its kind. At its begin the value is 0; at its end it says how many units were recomputed and
       for how many nanoseconds (`wait_of`). Waits do not nest.
    3. A replay: the name is `R(L7.linear_fc1)`, and the value says microbatch, call, and whether it was hidden
       (`overlap_recompute.runtime.marks`). A replay that fails has an INSTANT in place of its end.
    """

    __slots__ = ("ring", "replays", "passes", "waits", "_mark", "_forward", "_backward", "_wait_numbers")

    def __init__(self, ring: EventRing) -> None:
        self.ring = ring
        self._mark: Callable[[int, int, int], None] = ring.mark
        self._forward, self._backward = ring.intern(Kind.F.value), ring.intern(Kind.B.value)
        self._wait_numbers = {kind: ring.intern(kind.value) for kind in WindowKind}
        self.passes: Mapping[int, Kind] = {self._forward: Kind.F, self._backward: Kind.B}
        """Which names are passes."""
        self.waits: Mapping[int, WindowKind] = {number: kind for kind, number in self._wait_numbers.items()}
        """Which names are waits."""
        self.replays = ReplayMarks(ring, number_of)
        """For the runtime."""

    def begin_forward(self, key: MicrobatchKey) -> None:
        """A forward pass begins."""
        self._mark(self._forward, BEGIN, number_of(key))

    def end_forward(self, key: MicrobatchKey) -> None:
        """It has ended."""
        self._mark(self._forward, END, number_of(key))

    def follow_backward(self, output: Any, key: MicrobatchKey) -> None:
        """Mark the backward pass through the model whose output this is."""
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(partial(self._begin_backward, number_of(key)))

    def _begin_backward(self, number: int, gradient: Tensor) -> None:
        self._mark(self._backward, BEGIN, number)
        Variable._execution_engine.queue_callback(partial(self._mark, self._backward, END, number))

    def begin_wait(self, kind: WindowKind) -> None:
        """The rank has nothing left to do but wait."""
        self._mark(self._wait_numbers[kind], BEGIN, 0)

    def end_wait(self, kind: WindowKind, units: int, filled_ns: int) -> None:
        """It goes on."""
        self._mark(self._wait_numbers[kind], END, filled_ns << UNIT_BITS | min(units, MOST_UNITS))


def number_of(key: Hashable) -> int:
    """A microbatch of this rank as a number; its stage is that of the rank."""
    assert isinstance(key, MicrobatchKey), "a session names its microbatches so"
    return key.chunk << MICROBATCH_BITS | key.number


def microbatch_of(number: int) -> tuple[int, int]:
    """Chunk and microbatch, from `number_of`."""
    return number >> MICROBATCH_BITS, number & _MICROBATCHES


def wait_of(value: int) -> tuple[int, int]:
    """Units and nanoseconds of recompute, from the end of a wait."""
    return value & MOST_UNITS, value >> UNIT_BITS
