"""A `torch.distributed` whose collectives of chosen groups mark their launch and their wait."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron.overlap.adapters.collectives import COLLECTIVES, Kinds, WindowedCollectives, WindowedWork
from megatron.overlap.delayed_gradients import DelayedGradients
from megatron.overlap.measuring.marks import At, Communication, Marks
from megatron.overlap.windows import in_backward

FITS: Mapping[str, str] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "all_to_all_single": "all_to_all",
    "reduce_scatter": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
}
"""What a collective of torch is called in a profile."""


class MeasuredCollectives(WindowedCollectives):
    """Marks and changes nothing else: a synchronous call becomes launch and wait, as it is in a window.

    Args:
        marks: where.
        kinds: names of a group's windows; groups that are not in it are left alone.
        delayed: as `WindowedCollectives`: they are no part of the wait, and no part of their layer's backward pass.
    """

    def __init__(
        self, marks: Marks, kinds: Mapping[ProcessGroup, Kinds], delayed: DelayedGradients | None = None
    ) -> None:
        self._marks, self._kinds, self._delayed = marks, dict(kinds), delayed

    def collective(self, name: str) -> Callable[..., Any]:
        """The marked collective of this name."""
        marks, kinds, pollable = self._marks, self._kinds, COLLECTIVES[name]

        def call(*args: Any, group: ProcessGroup | None = None, async_op: bool = False, **options: Any) -> Any:
            real = getattr(torch.distributed, name)
            names = kinds.get(group) if group is not None else None
            if names is None or not marks.active:
                return real(*args, group=group, async_op=async_op, **options)
            nbytes = max(_nbytes(value) for value in (*args, *options.values()))
            communication = Communication(names[in_backward()], FITS[name], nbytes, False)
            if async_op:  # else nothing is computed meanwhile, and the launch counts as what came before it
                marks.add(At.LAUNCH, communication=communication)
            work = real(*args, group=group, async_op=True, **options)
            if work is None:  # this rank is not in the group
                return None
            if async_op:
                return WindowedWork(work, lambda launched: self._wait(launched, communication, pollable))
            self._wait(work, communication, pollable=False)
            return None

        return call

    def _wait(self, work: Any, communication: Communication, pollable: bool) -> None:
        marks = self._marks
        self.compute_delayed(communication.kind)
        marks.add(At.WAIT, communication=communication)
        was_over = pollable and work.is_completed()
        work.wait()
        marks.add(At.WAIT_END, communication=communication._replace(was_over=was_over))


def _nbytes(value: Any) -> int:
    """Of a tensor, or of all tensors in a list."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_nbytes, value)) if isinstance(value, tuple | list) else 0
