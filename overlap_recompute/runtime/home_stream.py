"""The stream of a CUDA device that a forward pass is launched on (docs/runtime.md, R11)."""

from collections.abc import Callable, Hashable

import torch

from overlap_recompute.plan.errors import ConfigError


class HomeStream:
    """Tells whether work goes to another stream than the one that was current when the forward pass began.

    Autograd reads what is saved on another stream on that stream again, where nobody waits for replays: it is kept.
    """

    __slots__ = ("stream", "_now")

    def __init__(self, now: Callable[[], Hashable]) -> None:
        """`now`: the stream that operations of this thread go to."""
        self.stream, self._now = now(), now

    def is_left(self) -> bool:
        """Whether another stream is current."""
        return self._now() != self.stream


def home_stream() -> HomeStream | None:
    """The present stream; None where no CUDA device is in use.

    Raises:
        ConfigError: the stream is being captured into a CUDA graph.
    """
    if not torch.cuda.is_initialized():
        return None
    if torch.cuda.is_current_stream_capturing():
        raise ConfigError(
            "a microbatch that begins while its stream is captured into a CUDA graph",
            "a forward pass that runs now: a graph would repeat the replays of one step, with its random numbers",
            "capture nothing that a microbatch is part of",
        )
    return HomeStream(_current_stream)


def _current_stream() -> int:
    # Called for every tensor that is saved outside of units: `torch.cuda.current_stream` takes ten times as long.
    return torch._C._cuda_getCurrentRawStream(torch._C._cuda_getDevice())
