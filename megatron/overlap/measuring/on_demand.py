"""Measuring while every unit that can be dropped is dropped, and replayed when backward needs it.

```
forward  | ASIDE  its arguments are stored  ASIDE_END | UNIT .. UNIT_END | ASIDE  outputs are noted  ASIDE_END | ..
backward | GRAD_UNIT activation | ASIDE  its replay, and those before it  ASIDE_END | .. | GRAD_UNIT linear_fc1 | ..
```

What stands aside is cut out when marks are sorted (`asides`), so that steps are those of a run without recompute.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

from megatron.core import parallel_state
from torch import nn

from megatron.overlap.adapters.tensor_parallel_random import TrackerRng
from megatron.overlap.measuring.marks import At, Marks
from megatron.overlap.measuring.sites import MeasuredSites
from megatron.overlap.settings import MicrobatchKey
from overlap_recompute.runtime import Decision, Journal, Place, Policy, Runtime, UnitDecision
from overlap_recompute.runtime.journal import Kind

Result = TypeVar("Result")
_MARK_OF = {Kind.REPLAY_BEGIN: At.ASIDE, Kind.REPLAY_END: At.ASIDE_END}


class ReplayMarks(Journal):
    """Marks where replays begin and end; records nothing."""

    __slots__ = ("_marks",)

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self._marks = marks

    def add(self, kind: Kind, place: Place, hidden: bool = False) -> None:
        """Set a mark if it is a replay's."""
        at = _MARK_OF.get(kind)
        if at is not None:
            self._marks.add(at)


class OnDemand:
    """A runtime that drops whatever is a unit and fills no window.

    Args:
        marks: where replays, and what else is no part of plain training, are marked.
        chunks: number of the model chunks of this rank.
        replays_hooks: forward hooks of modules inside a unit may run again in replays.
    """

    def __init__(self, marks: Marks, chunks: int, *, replays_hooks: bool) -> None:
        self._marks, self._counts = marks, [0] * chunks
        self._stage = parallel_state.get_pipeline_model_parallel_rank()
        self.runtime = Runtime(
            Policy.save_all(),
            prefetch_cap_bytes=0,
            rng_providers=(TrackerRng(),),
            journal=ReplayMarks(marks),
            replay_inner_hooks=replays_hooks,
        )
        self.kept_peak_bytes = 0
        """Most that was kept for backward at one time in a step."""

    def drop_all(self, chunks: Sequence[nn.Module]) -> None:
        """The units are known: drop them from the next microbatch on."""
        for chunk in chunks:
            self.runtime.know_storages(chunk)
        rules = [
            UnitDecision(unit=unit, layer=layer, decision=Decision.RECOMPUTE) for unit, layer in self.runtime.units
        ]
        self.runtime.set_policy(Policy(rules=tuple(rules)))

    def microbatch(self, chunk: int) -> AbstractContextManager[None]:
        """Around the forward pass of a microbatch through a chunk."""
        number = self._counts[chunk]
        self._counts[chunk] += 1
        return self.runtime.microbatch(MicrobatchKey(self._stage, chunk, number))

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around all passes of an iteration."""
        self._counts = [0] * len(self._counts)
        try:
            yield
            self._marks.add(At.ASIDE)
            report = self.runtime.step_end()
            self._marks.add(At.ASIDE_END)
        except BaseException:
            self.runtime.abort()
            raise
        self.kept_peak_bytes = max(self.kept_peak_bytes, report.kept_peak_bytes)


class DroppedSites(MeasuredSites):
    """Times the calls of units in the forward pass alone, while a runtime drops them."""

    def __init__(self, runtime: Runtime, *args: Any) -> None:
        """`runtime`: gets the units; the rest as for `MeasuredSites`."""
        super().__init__(*args)
        self._runtime = runtime

    def attach_unit(self, module: nn.Module, unit: str, layer: int) -> None:
        """Time a module inside of what the runtime sets in its place.

        Taking it back begins with the runtime's `detach`: the replacements around it end with the module's own.
        """
        self._replacements.set(module, "forward", partial(self._inside, unit, layer, module.forward))
        self._runtime.attach_unit(module, unit, layer)
        self._replacements.set(module, "forward", partial(super().run, unit, layer, module.forward))

    def declare(self, unit: str, layer: int) -> None:
        """Make the unit known to the runtime."""
        self._runtime.declare(unit, layer)

    def run(self, unit: str, layer: int, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a unit through the runtime."""
        inside = partial(self._inside, unit, layer, function)
        return super().run(unit, layer, partial(self._runtime.run, unit, layer, inside), *args, **kwargs)

    def _call(
        self, unit: str, layer: int, function: Callable[..., Result], args: tuple[Any, ...], options: dict[str, Any]
    ) -> Result:
        self._marks.add(At.ASIDE)
        output = function(*args, **options)
        self._marks.add(At.ASIDE_END)
        return output

    def _inside(self, unit: str, layer: int, function: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """What the runtime calls: in the forward pass, where it is timed, and in the replay."""
        if not self._marks.active or self._runtime.replaying:
            return function(*args, **options)
        self._marks.add(At.ASIDE_END)
        output = super()._call(unit, layer, function, args, options)
        self._marks.add(At.ASIDE)
        return output
