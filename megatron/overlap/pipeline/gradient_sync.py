"""When data-parallel communication starts in a step: by the rules of Megatron-Core's schedules.

NOTE [ gradient reduction ]
1. Within `no_sync` the backward pass of a microbatch only adds to the gradients. It is left before the last backward
   pass of a chunk, whose gradients are then reduced bucket by bucket, beside the pass.
2. With `grad_sync_func` all stages start at the same moment of the schedule instead: stage r, r passes late. Without
   interleaving only the first stage reduces beside its last pass, the others while the pipeline runs empty.
3. `param_sync_func` gathers the parameters of the next chunk, with interleaving only, at the same moment everywhere.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from megatron.overlap.pipeline.program import Program

SyncFunctions = Sequence[Callable[..., Any]] | None


class GradientSync:
    """What the handlers of F and B call before and after a pass; does nothing in an evaluation."""

    def __init__(self, config: Any, chunks: Sequence[nn.Module], program: Program, stage: int) -> None:
        """Args:
        config: the model's; `no_sync_func`, `grad_sync_func` and `param_sync_func` may be functions or one per chunk.
        chunks: model chunks of this rank.
        program: what this rank does in the step.
        stage: pipeline rank.
        """
        self._chunks, self._program, self._stage = chunks, program, stage
        self._no_sync = config.no_sync_func
        self._grad_sync = _for_each(config.grad_sync_func, chunks) if program.trains else None
        self._param_sync = _for_each(config.param_sync_func, chunks) if program.trains and len(chunks) > 1 else None
        self._held: contextlib.ExitStack | None = None
        self._reduced: set[int] = set()

    def begin(self) -> None:
        """The step begins: hold reductions back, gather what the first passes need."""
        self._hold()
        for chunk in range(min(2, len(self._chunks)) if self._param_sync else 0):
            self._gather(chunk)

    def before_forward(self, number: int) -> None:
        """Forward pass `number` of this rank comes next."""
        coming = number + self._stage
        if self._param_sync is None or coming >= len(self._program.forward):
            return
        action = self._program.forward[coming]
        if action.microbatch == 0 and 1 < action.chunk + 1 < len(self._chunks):
            self._gather(action.chunk + 1)

    def before_backward(self, number: int) -> None:
        """Backward pass `number` of this rank comes next."""
        interleaved = len(self._chunks) > 1
        if self._grad_sync is not None and (interleaved or self._stage > 0):
            return
        action = self._program.backward[number]
        if action.microbatch == self._program.microbatches - 1:
            self._release()
            self._reduced.add(action.chunk)

    def after_backward(self, number: int) -> None:
        """Backward pass `number` of this rank has ended."""
        if len(self._chunks) == 1:
            return
        due = number - self._stage
        if self._grad_sync is not None and due >= 0:
            action = self._program.backward[due]
            if action.microbatch == self._program.microbatches - 1:
                self._release()
                self._reduce(action.chunk)
        self._hold()

    def finish(self) -> None:
        """The passes are over: start the reductions that are left."""
        self._release()
        for chunk in range(len(self._chunks) if self._grad_sync and self._program.trains else 0):
            if chunk not in self._reduced:
                self._reduce(chunk)

    def close(self) -> None:
        """Leave `no_sync`, also after an error."""
        self._release()

    def _hold(self) -> None:
        if self._held is None and self._no_sync is not None:
            self._held = contextlib.ExitStack()
            for no_sync in self._no_sync if isinstance(self._no_sync, list) else [self._no_sync]:
                self._held.enter_context(no_sync())

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def _reduce(self, chunk: int) -> None:
        assert self._grad_sync is not None
        self._grad_sync[chunk](self._chunks[chunk].parameters())
        self._reduced.add(chunk)

    def _gather(self, chunk: int) -> None:
        assert self._param_sync is not None
        self._param_sync[chunk](self._chunks[chunk].parameters())


def _for_each(functions: Any, chunks: Sequence[nn.Module]) -> SyncFunctions:
    if functions is None or isinstance(functions, list):
        return functions
    return [functions] * len(chunks)
