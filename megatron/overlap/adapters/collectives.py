"""A `torch.distributed` whose collectives of chosen groups open windows; what the tensor-parallel adapters bind."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch.distributed import ProcessGroup

from megatron.overlap.delayed_gradients import DelayedGradients
from megatron.overlap.windows import Windows, in_backward
from megatron.pretrain.platform.facade import FallbackModule
from overlap_recompute.plan.errors import UserError
from overlap_recompute.plan.windows import WindowKind

Kinds = tuple[WindowKind, WindowKind]
"""What a group's windows are called in the forward and in the backward pass."""

COLLECTIVES: Mapping[str, bool] = {
    "all_reduce": True,
    "all_gather": True,
    "all_gather_into_tensor": True,
    "all_to_all_single": True,
    "reduce_scatter": False,
    "reduce_scatter_tensor": False,
}
"""Collectives, and whether gloo's `is_completed` tells the truth about them before `wait`."""


class WindowedWork:
    """A Work whose `wait` recomputes first."""

    __slots__ = ("_work", "_finish")

    def __init__(self, work: Any, finish: Callable[[Any], object]) -> None:
        self._work, self._finish = work, finish

    def wait(self) -> bool:
        """Recompute while the communication is in flight, then wait for it."""
        self._finish(self._work)
        return True

    def is_completed(self) -> bool:
        """As the Work says."""
        completed: bool = self._work.is_completed()
        return completed


class WindowedCollectives:
    """Makes windowed collectives.

    A synchronous call becomes launch, recompute, wait; of an asynchronous one the `wait` recomputes first, so what
    the caller computed in between (the weight gradients) is not part of the window. Other groups, and everything
    outside of training steps, go straight to `torch.distributed`.

    Args:
        windows: where windows are opened.
        kinds: names of a group's windows; groups that are not in it are left alone.
        delayed: weight gradients to compute as soon as a communication of the backward pass is on its way, like those
            that upstream computes then: before the window opens.
    """

    def __init__(
        self, windows: Windows, kinds: Mapping[ProcessGroup, Kinds], delayed: DelayedGradients | None = None
    ) -> None:
        self._windows, self._kinds, self._delayed = windows, dict(kinds), delayed

    def collective(self, name: str) -> Callable[..., Any]:
        """The windowed collective of this name."""
        windows, kinds, pollable = self._windows, self._kinds, COLLECTIVES[name]

        def call(*args: Any, group: ProcessGroup | None = None, async_op: bool = False, **options: Any) -> Any:
            # Looked up at each call, so that whoever replaces the real one later is heard.
            real = getattr(torch.distributed, name)
            names = kinds.get(group) if group is not None else None
            if windows.replaying:
                raise _in_a_replay(name)
            if names is None or not windows.active:
                return real(*args, group=group, async_op=async_op, **options)
            kind = names[in_backward()]
            work = real(*args, group=group, async_op=True, **options)
            if work is None:  # this rank is not in the group
                return None
            if async_op:
                return WindowedWork(work, lambda launched: self._finish(kind, launched, pollable))
            self._finish(kind, work, pollable)
            return None

        return call

    def compute_delayed(self, kind: WindowKind) -> None:
        """Compute the weight gradients that were put off, if this is what they were put off to."""
        if self._delayed is not None and kind is WindowKind.TP_BACKWARD:
            self._delayed.compute()

    def _finish(self, kind: WindowKind, work: Any, pollable: bool) -> None:
        self.compute_delayed(kind)
        self._windows.finish(kind, work, pollable=pollable)

    def torch_for(self, module: ModuleType) -> ModuleType:
        """The `torch` that the module has, with windowed collectives in its `distributed`."""
        present = module.__dict__["torch"]
        front = FallbackModule(torch.distributed, **{name: self.collective(name) for name in COLLECTIVES})
        return FallbackModule(present, distributed=front)


def _in_a_replay(name: str) -> UserError:
    return UserError(
        f"a replay that calls {name} over a tensor-, expert- or context-parallel group",
        "units that only compute: a collective in a replay would meet no peer, or the wrong one",
        "leave the unit that the message names out of --overlap-recompute-policy",
    )
