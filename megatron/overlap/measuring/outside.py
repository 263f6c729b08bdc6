"""Marks around the synchronous collectives of the update: gradients of tied embeddings, gradient norms, and the like.

How long the update waits for them depends on the links, the rest of it does not.
"""

from collections.abc import Callable
from typing import Any

import torch

from megatron.overlap.measuring.marks import At, Marks
from megatron.overlap.replacements import Replacements

NAMES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")
"""Of `torch.distributed`."""


class OutsideCollectives:
    """Marks synchronous collectives while `active`; which of them lie in the update is seen when marks are sorted.

    Collectives of layers are launched asynchronously while a run is measured (`MeasuredCollectives`), so they are none
    of these.

    Args:
        marks: where.
        replacements: put the functions of `torch.distributed` back.
    """

    def __init__(self, marks: Marks, replacements: Replacements) -> None:
        self.active = False
        self._marks = marks
        for name in NAMES:
            replacements.set(torch.distributed, name, self._marked(getattr(torch.distributed, name)))

    def _marked(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if not self.active or options.get("async_op", False):
                return real(*args, **options)
            self._marks.add(At.OUTSIDE)
            result = real(*args, **options)
            self._marks.add(At.OUTSIDE_END)
            return result

        return call
