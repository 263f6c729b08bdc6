"""A link that takes alpha + bytes / bandwidth for a transfer, on a host's clock or on a second stream of a GPU.

    comp: | fc2 | launch all_reduce, mark     wait    | next layer
    link: |     | after the mark: busy ............ | |

NOTE [ what a transfer is here ]
1. Time only: the results of collectives are made on the spot (`collectives`). Transfers queue behind one another.
2. CPU: nothing runs; a transfer is over when its time has come.
3. CUDA, paced kernel: a few thread blocks on a stream of high priority copy so many bytes at the link's pace. They take
   multiprocessors and memory bandwidth as a collective kernel does.
4. CUDA, copy engine: copies to pinned host memory that take as long, by the rate measured when the link is made. They
   take no multiprocessor. Transfers shorter than some 10 us come out too long: a copy has its own start-up time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from overlap_recompute.ops import current_stream
from overlap_recompute.ops.emulated_link import EmulatedLink
from overlap_recompute.plan.errors import ConfigError
from tools.stage_bench_lib.options import COPY_ENGINE, Options

BYTES_PER_US_OF_A_GBYTE_PER_S = 1e3
BITS_PER_BYTE = 8
PINNED_BYTES = 64 << 20
WARM_UP_COPIES, COUNTED_COPIES = 2, 5
US_PER_MS = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """alpha-beta: a transfer of n bytes over the wire of a rank takes alpha_us + n / bandwidth."""

    alpha_us: float
    gbyte_per_s: float

    def duration_us(self, wire_bytes: int) -> float:
        """On an idle link."""
        return self.alpha_us + wire_bytes / (self.gbyte_per_s * BYTES_PER_US_OF_A_GBYTE_PER_S)


class Transit(Protocol):
    """A transfer that was launched."""

    def wait(self) -> None:
        """The caller (CPU) or the current stream (CUDA) waits for it; the second time does nothing."""
        ...

    def is_over(self) -> bool:
        """Whether it is complete; does not block."""
        ...


class Link(Protocol):
    """Launches transfers."""

    rate: Rate
    scratch_bytes: int
    """Device memory that the emulation takes for itself."""

    def start(self, wire_bytes: int) -> Transit:
        """Launch one behind what the calling thread's current stream was given so far."""
        ...

    def describe(self) -> str:
        """What carries it."""
        ...

    def close(self) -> None:
        """Wait for what is under way and free it."""
        ...


class _HostTransit:
    def __init__(self, over_at_s: float, clock_s: Callable[[], float]) -> None:
        self._over_at_s, self._clock_s = over_at_s, clock_s

    def wait(self) -> None:
        while (left_s := self._over_at_s - self._clock_s()) > 0:
            time.sleep(left_s)

    def is_over(self) -> bool:
        return self._clock_s() >= self._over_at_s


class HostLink:
    """Completion by time. See NOTE [ what a transfer is here ], 2."""

    scratch_bytes = 0

    def __init__(self, rate: Rate, clock_s: Callable[[], float] = time.perf_counter) -> None:
        self.rate, self._clock_s, self._free_at_s = rate, clock_s, 0.0

    def start(self, wire_bytes: int) -> Transit:
        """See `Link`."""
        begin_s = max(self._clock_s(), self._free_at_s)
        self._free_at_s = begin_s + self.rate.duration_us(wire_bytes) * 1e-6
        return _HostTransit(self._free_at_s, self._clock_s)

    def describe(self) -> str:
        """See `Link`."""
        return "completion by the host's clock, no work"

    def close(self) -> None:
        """Nothing to free."""


class _FenceTransit:
    def __init__(self, fence: Any, device: torch.device) -> None:
        self._fence, self._device, self._was_waited_for = fence, device, False

    def wait(self) -> None:
        if not self._was_waited_for:
            self._was_waited_for = True
            self._fence.wait(current_stream(self._device))

    def is_over(self) -> bool:
        return self._was_waited_for or bool(self._fence.passed())


class PacedKernelLink:
    """See NOTE [ what a transfer is here ], 3."""

    def __init__(self, rate: Rate, device: torch.device, *, blocks: int) -> None:
        self.rate, self._device, self._blocks = rate, device, blocks
        self._link = EmulatedLink(
            device, latency_us=rate.alpha_us, bandwidth_gbps=rate.gbyte_per_s * BITS_PER_BYTE, blocks=blocks
        )
        self._source = self._target = torch.empty(0, dtype=torch.uint8, device=device)

    @property
    def scratch_bytes(self) -> int:
        """See `Link`."""
        return self._source.numel() + self._target.numel()

    def start(self, wire_bytes: int) -> Transit:
        """See `Link`."""
        if self._source.numel() < wire_bytes:  # in the first step, which is not counted
            torch.cuda.synchronize(self._device)
            self._source = torch.empty(wire_bytes, dtype=torch.uint8, device=self._device)
            self._target = torch.empty_like(self._source)
        fence = self._link.transfer(
            wire_bytes, source=self._source, target=self._target, after=current_stream(self._device)
        )
        return _FenceTransit(fence, self._device)

    def describe(self) -> str:
        """See `Link`."""
        return f"a paced copy kernel of {self._blocks} thread blocks on a second stream"

    def close(self) -> None:
        """See `Link`."""
        self._link.close()


class _EventTransit:
    def __init__(self, event: Any, device: torch.device) -> None:
        self._event, self._device = event, device

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._event)

    def is_over(self) -> bool:
        return bool(self._event.query())


class CopyEngineLink:
    """See NOTE [ what a transfer is here ], 4."""

    def __init__(self, rate: Rate, device: torch.device) -> None:
        self.rate, self._device = rate, device
        self._stream: Any = torch.cuda.Stream(device, priority=-1)
        self._on_device = torch.empty(PINNED_BYTES, dtype=torch.uint8, device=device)
        self._on_host = torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
        self.scratch_bytes = PINNED_BYTES
        self._bytes_per_us = self._measure()

    def _measure(self) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._stream):
            for number in range(WARM_UP_COPIES + COUNTED_COPIES):
                if number == WARM_UP_COPIES:
                    begin.record()
                self._on_host.copy_(self._on_device, non_blocking=True)
            end.record()
        torch.cuda.synchronize(self._device)
        return COUNTED_COPIES * PINNED_BYTES / (begin.elapsed_time(end) * US_PER_MS)

    def start(self, wire_bytes: int) -> Transit:
        """See `Link`."""
        left = int(self.rate.duration_us(wire_bytes) * self._bytes_per_us)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        event = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            while left > 0:
                part = min(left, PINNED_BYTES)
                self._on_host[:part].copy_(self._on_device[:part], non_blocking=True)
                left -= part
            event.record()
        return _EventTransit(event, self._device)

    def describe(self) -> str:
        """See `Link`."""
        gbyte_per_s = self._bytes_per_us / BYTES_PER_US_OF_A_GBYTE_PER_S
        return f"copy-engine transfers to pinned memory on a second stream ({gbyte_per_s:.1f} GB/s, as long as said)"

    def close(self) -> None:
        """See `Link`."""
        torch.cuda.synchronize(self._device)


def rate_of(options: Options) -> Rate:
    """Of collectives."""
    return Rate(alpha_us=options.alpha_us, gbyte_per_s=options.gbyte_per_s)


def pipeline_rate_of(options: Options) -> Rate:
    """Of messages between stages."""
    alpha_us, gbyte_per_s = options.pipeline_alpha_us, options.pipeline_gbyte_per_s
    return Rate(
        alpha_us=options.alpha_us if alpha_us is None else alpha_us, gbyte_per_s=gbyte_per_s or options.gbyte_per_s
    )


def open_link(options: Options, device: torch.device) -> Link:
    """The link that the options ask for."""
    rate = rate_of(options)
    if device.type == "cpu":
        return HostLink(rate)
    if options.link == COPY_ENGINE:
        return CopyEngineLink(rate, device)
    return PacedKernelLink(rate, device, blocks=options.blocks)


def require_device(options: Options) -> None:
    """Whether the device that was asked for is there.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device cuda, but torch {torch.__version__} sees no CUDA device",
            "an NVIDIA GPU, and a CUDA build of torch",
            "run it where there is one, or try the program with --device cpu and toy overrides",
        )
