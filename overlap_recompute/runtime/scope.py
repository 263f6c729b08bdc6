"""The forward pass of a microbatch, from begin to end (docs/runtime.md, R1)."""

from collections.abc import Hashable
from types import TracebackType

import torch
from torch.autograd.graph import saved_tensors_hooks

from overlap_recompute.runtime.calls import Microbatch
from overlap_recompute.runtime.errors import UnfinishedError
from overlap_recompute.runtime.home_stream import home_stream
from overlap_recompute.runtime.recompute_queue import RecomputeQueue
from overlap_recompute.runtime.state import RuntimeState


class MicrobatchScope:
    """Around the forward pass of one microbatch; `Runtime.microbatch` makes it."""

    __slots__ = ("_state", "_queue", "_hooks", "_microbatch")

    def __init__(self, state: RuntimeState, queue: RecomputeQueue, hooks: saved_tensors_hooks, key: Hashable) -> None:
        self._state, self._queue, self._hooks = state, queue, hooks
        self._microbatch = Microbatch(key, torch.is_grad_enabled())

    def __enter__(self) -> None:
        key, inside = self._microbatch.key, self._state.microbatch
        before = self._queue.find(key)
        if inside is not None or (before is not None and any(True for _ in before.living())):
            raise UnfinishedError(
                f"microbatch {key} begins while microbatch {inside.key if inside else key} is in flight",
                "one forward pass at a time, and a key of its own for each microbatch in flight",
                "run its backward pass first, or choose another key",
            )
        self._state.home = home_stream()
        self._queue.begin(self._microbatch)
        self._state.microbatch, self._state.last_read = self._microbatch, None
        self._hooks.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self._state.microbatch = None
        # From here on nobody can save an output, so calls live for their handles alone.
        self._state.outputs.clear()
        if kind is None:
            self._queue.complete(self._microbatch)
        else:
            self._queue.abandon(self._microbatch)
