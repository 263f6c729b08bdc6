"""A unit of a model: the callable that stands in for a module's `forward` (docs/runtime.md, R1, R8, R15)."""

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from overlap_recompute.runtime.ambient import Surroundings

if TYPE_CHECKING:
    from overlap_recompute.runtime.record import Recorder


FIRST_LATE_SHARE = 0.25
LATE_SHARE_WEIGHT = 0.25
"""Of the latest call."""


class Unit:
    """What is known about a unit once and for all; a module's, or a function's (then `module` is None)."""

    __slots__ = (
        "name",
        "layer",
        "dropped",
        "modules",
        "parameters",
        "surroundings",
        "has_buffers",
        "_buffers",
        "_running",
        "inner_hooks",
        "replay_ns",
        "late_share",
    )

    def __init__(self, name: str, layer: int, dropped: bool, module: nn.Module | None) -> None:
        self.name, self.layer, self.dropped = name, layer, dropped
        self.modules: tuple[nn.Module, ...] = tuple(module.modules()) if module is not None else ()
        self.parameters: tuple[nn.Parameter, ...] = tuple(module.parameters()) if module is not None else ()
        self.replay_ns = 0
        """How long its last replay took on the host; 0 before the first."""
        self.late_share = FIRST_LATE_SHARE
        """Share of its calls that backward had to wait for after a window had left them for later; the latest count
        most."""
        self.surroundings: Surroundings | None = None
        """What was in force at the last call: the next one shares the object when nothing has changed."""
        self._buffers = tuple(
            (m._buffers, key) for m in self.modules for key, value in m._buffers.items() if value is not None
        )
        self.has_buffers = bool(self._buffers)
        """Whether there is anything for `buffer_marks` to look at."""
        self._running = tuple(m for m in self.modules if isinstance(m, _NormBase) and m.track_running_stats)
        self.inner_hooks = tuple(hooks for m in self.modules[1:] for hooks in (m._forward_pre_hooks, m._forward_hooks))

    def note_postponed(self, was_late: bool) -> None:
        """A call that a window had left for later has come back: `was_late`, because backward waited for it."""
        self.late_share += (was_late - self.late_share) * LATE_SHARE_WEIGHT

    def buffer_marks(self) -> tuple[tuple[int, int], ...]:
        """Identity and in-place version of each buffer: they differ after a forward pass that changed one."""
        return tuple([(id(b := buffers[key]), -1 if b is None else b._version) for buffers, key in self._buffers])

    def updates_statistics(self) -> bool:
        """Whether a normalization updates its running statistics, which its kernel does without telling anyone."""
        return any(module.training for module in self._running)

    def has_inner_hooks(self) -> bool:
        """Whether a module inside the unit has forward hooks, which a replay would run a second time."""
        return any(self.inner_hooks)


class UnitForward:
    """Stands in for `module.forward`; hooks of the module itself stay outside, so a replay does not run them."""

    __slots__ = ("__wrapped__", "unit", "recorder", "module", "__weakref__")

    def __init__(self, unit: Unit, recorder: "Recorder", module: nn.Module, forward: Callable[..., Any]) -> None:
        self.__wrapped__, self.unit, self.recorder, self.module = forward, unit, recorder, module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state = self.recorder.state
        if state.microbatch is None or state.running is not None or not torch.is_grad_enabled():
            return self.__wrapped__(*args, **kwargs)
        return self.recorder.run_unit(self.unit, self.__wrapped__, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module is not attached: it gets its own plain `forward`."""
        return plain_forward(memo[id(self.module)])

    def __reduce__(self) -> tuple[Any, ...]:
        return plain_forward, (self.module,)


class LayerForward:
    """Stands in for the `forward` of a layer: what is kept inside is attributed to it."""

    __slots__ = ("__wrapped__", "layer", "recorder", "module", "__weakref__")

    def __init__(self, layer: int, recorder: "Recorder", module: nn.Module, forward: Callable[..., Any]) -> None:
        self.__wrapped__, self.layer, self.recorder, self.module = forward, layer, recorder, module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state = self.recorder.state
        outer, state.layer = state.layer, self.layer
        try:
            return self.__wrapped__(*args, **kwargs)
        finally:
            state.layer = outer

    __deepcopy__ = UnitForward.__deepcopy__
    __reduce__ = UnitForward.__reduce__


def plain_forward(module: nn.Module) -> Callable[..., Any]:
    """The `forward` that the module's class defines, bound to it."""
    return types.MethodType(type(module).forward, module)
