"""The log of one iteration: a mark for each moment at which one part ends and another begins.

```
forward  | PASS chunk 0 | MODEL | LAYER 0 | UNIT norm .. UNIT_END | UNIT qkv .. UNIT_END | .. | WAIT .. WAIT_END | ..
backward | BACKWARD | GRAD_LAYER 1 | GRAD_UNIT activation | .. | LAUNCH  WAIT .. WAIT_END | .. | BACKWARD_END |
```

Forward marks come from stand-ins for `forward`; backward marks from hooks on the outputs of layers and units, which
autograd calls as soon as their gradient is complete, and so before it computes the backward pass of what made them.
"""

import enum
from typing import Any, NamedTuple

from megatron.overlap.measuring.clocks import Clock
from overlap_recompute.plan.windows import WindowKind


@enum.unique
class At(enum.Enum):
    """What happens at a mark."""

    PASS = "forward pass begins"
    MODEL = "the data is here"
    LAYER = "layer begins"
    LAYER_END = "layer has ended"
    UNIT = "unit begins"
    UNIT_END = "unit has ended"
    LAUNCH = "a communication is launched"
    WAIT = "nothing to do but to wait for it"
    WAIT_END = "it is over"
    PASS_END = "forward pass has ended, loss included"
    BACKWARD = "backward pass begins"
    GRAD_LAYER = "the gradient of a layer's output is complete"
    GRAD_UNIT = "the gradient of a unit's output is complete"
    GRAD_SUM = "the gradient of the sum behind attention is complete"
    GRAD_INPUT = "the gradient of what the first layer got is complete"
    BACKWARD_END = "backward pass has ended"
    OUTSIDE = "a synchronous collective begins that belongs to no layer"
    OUTSIDE_END = "that collective is over"
    ASIDE = "something begins that a run without recompute does not do"
    ASIDE_END = "that is done"
    ITERATION = "iteration begins"
    STEP_END = "all passes have ended, gradients are reduced"
    ITERATION_END = "iteration has ended"


class Communication(NamedTuple):
    """What a wait is for."""

    kind: WindowKind
    collective: str
    nbytes: int
    """Of the whole tensor that is communicated."""
    was_over: bool
    """At its end only: the communication was complete before the wait began, as far as the host can tell."""


class Mark(NamedTuple):
    """A moment."""

    at: At
    stamp: Any
    """Of the clock."""
    unit: str
    """Name of the unit; else empty."""
    layer: int
    """Index in the model; of a pass, the chunk; -1 where there is none."""
    communication: Communication | None


class Marks:
    """Gathers the marks of an iteration. Silent unless `active`."""

    __slots__ = ("active", "clock", "log")

    def __init__(self, clock: Clock) -> None:
        self.active = False
        self.clock = clock
        self.log: list[Mark] = []

    def add(self, at: At, unit: str = "", layer: int = -1, communication: Communication | None = None) -> None:
        """Mark this moment."""
        self.log.append(Mark(at, self.clock.stamp(), unit, layer, communication))

    def take(self) -> tuple[list[Mark], list[float]]:
        """The marks since the last call, and when each was, in microseconds."""
        log, self.log = self.log, []
        return log, self.clock.times_us([mark.stamp for mark in log])
