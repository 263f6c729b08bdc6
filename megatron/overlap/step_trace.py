"""What a session puts into the trace, and when."""

import time
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.autograd import Variable

from megatron.overlap.settings import MicrobatchKey, OverlapSettings
from megatron.overlap.trace import TraceWriter
from megatron.overlap.window_log import Window
from overlap_recompute.plan.actions import Action, Kind
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.runtime import Journal


class StepTrace:
    """Follows the steps of one rank."""

    def __init__(self, settings: OverlapSettings, folder: Path, journal: Journal) -> None:
        """Args:
        settings: the place of this rank.
        folder: where the trace goes.
        journal: what the runtime writes; emptied after each step.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            label = f"rank {settings.rank} (stage {settings.stage})"
            self._writer = TraceWriter(folder, settings.rank, label, settings.trace_origin)
        except OSError as error:
            raise ConfigError(
                f"--overlap-recompute-trace {folder}, which cannot be written ({error})",
                "a folder with permission to write",
                "name another folder",
            ) from None
        self._journal = journal
        self._forward_ns = 0

    def window(self, window: Window) -> None:
        """A wait has ended."""
        self._writer.window(window)

    def begin_forward(self) -> None:
        """A forward pass begins."""
        self._forward_ns = time.perf_counter_ns()

    def end_forward(self, key: MicrobatchKey) -> None:
        """It has ended."""
        self._writer.span("schedule", _name(Kind.F, key), self._forward_ns, time.perf_counter_ns())

    def follow_backward(self, output: Tensor, key: MicrobatchKey) -> None:
        """Record the backward pass through the model whose output this is."""
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(partial(self._begin_backward, key))

    def _begin_backward(self, key: MicrobatchKey, gradient: Tensor) -> None:
        end = partial(self._end_backward, key, time.perf_counter_ns())
        Variable._execution_engine.queue_callback(end)

    def _end_backward(self, key: MicrobatchKey, begin_ns: int) -> None:
        self._writer.span("schedule", _name(Kind.B, key), begin_ns, time.perf_counter_ns())

    def end_step(self) -> None:
        """Write what the journal has gathered."""
        self._writer.replays(self._journal)

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()


def _name(kind: Kind, key: MicrobatchKey) -> str:
    return str(Action(kind=kind, chunk=key.chunk, microbatch=key.number))
