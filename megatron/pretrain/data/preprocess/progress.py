"""How far a run is: a bar with an ETA on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from megatron.pretrain.data.preprocess.shards import ShardResult

LINE_INTERVAL_S = 10.0


class Progress(Protocol):
    """Told of every finished shard."""

    def add(self, result: ShardResult) -> None:
        """Count a shard."""

    def close(self) -> None:
        """Say no more."""


class ProgressLines:
    """Writes a line at most every `interval_s` seconds."""

    def __init__(
        self,
        total_bytes: int,
        stream: TextIO,
        *,
        interval_s: float = LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_bytes, self._stream, self._interval_s, self._clock = total_bytes, stream, interval_s, clock
        self._started_s = self._last_s = clock()
        self._done_bytes = self._tokens = 0

    def add(self, result: ShardResult) -> None:
        self._done_bytes += result.input_bytes
        self._tokens += result.tokens
        now_s = self._clock()
        if now_s - self._last_s < self._interval_s:
            return
        self._last_s, elapsed_s = now_s, now_s - self._started_s
        left_s = elapsed_s * (self._total_bytes - self._done_bytes) / max(1, self._done_bytes)
        share = 100.0 * self._done_bytes / max(1, self._total_bytes)
        self._stream.write(
            f"{self._done_bytes / 1e6:.1f} of {self._total_bytes / 1e6:.1f} MB ({share:.0f} %), "
            f"{self._tokens / elapsed_s:.0f} tokens/s, {left_s:.0f} s left\n"
        )
        self._stream.flush()

    def close(self) -> None:
        pass


class ProgressBar:
    """tqdm's bar, over bytes of input."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._tokens = 0

    def add(self, result: ShardResult) -> None:
        self._tokens += result.tokens
        self._bar.set_postfix_str(f"{self._tokens / 1e6:.1f} M tokens", refresh=False)
        self._bar.update(result.input_bytes)

    def close(self) -> None:
        self._bar.close()


def make_progress(total_bytes: int, stream: TextIO) -> Progress:
    """Choose the bar when `stream` is a terminal and tqdm is installed, lines otherwise."""
    if stream.isatty():
        try:
            import tqdm  # noqa: PLC0415 - optional
        except ImportError:
            return ProgressLines(total_bytes, stream)
        return ProgressBar(
            tqdm.tqdm(total=total_bytes, unit="B", unit_scale=True, desc="tokenizing", file=stream, dynamic_ncols=True)
        )
    return ProgressLines(total_bytes, stream)
