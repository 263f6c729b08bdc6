"""What overlapped recompute did since the last line of the log, all ranks together."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from megatron.overlap.spans import LaneTimes
from megatron.overlap.window_log import WindowSums
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime import StepReport

PREFIX = "overlap/"
NS_PER_MS = 1e6
US_PER_MS = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """One step of one rank."""

    report: StepReport
    """What was dropped, and when it came back."""
    windows: Mapping[WindowKind, WindowSums]
    """Windows by kind."""
    before_backward: WindowSums
    """Those of kind `pp_wait` in which the rank waited for a gradient."""
    length_ns: int
    """Of the step without the optimizer."""
    delayed_ns: int = 0
    """What weight gradients took that waited for a communication; on a GPU, to launch them."""
    device: LaneTimes | None = None
    """What the device's streams did, where the times above are those of a host that runs ahead of it."""


class Figures:
    """Adds up the steps of one rank; `take` joins the ranks."""

    def __init__(self, device: torch.device, predicted: Mapping[str, float] | None = None) -> None:
        """Args:
        device: where collectives of this job take their tensors from.
        predicted: what a plan expects, by name; handed out with what was measured.
        """
        self._device, self._predicted = device, dict(predicted or {})
        self._reset()

    def _reset(self) -> None:
        self._steps = self._length_ns = self._delayed_ns = 0
        self._before_backward = WindowSums()
        self._hidden_ms = self._exposed_ms = 0.0
        self._windows = {kind: WindowSums() for kind in WindowKind}
        self._peaks = dict.fromkeys(_PEAKS, 0)

    def add(self, step: StepFigures) -> None:
        """Count one step."""
        report = step.report
        self._steps += 1
        self._length_ns += step.length_ns
        self._delayed_ns += step.delayed_ns
        self._before_backward.join(step.before_backward)
        device = step.device
        self._hidden_ms += report.hidden_us / US_PER_MS if device is None else device.hidden_ns / NS_PER_MS
        self._exposed_ms += report.exposed_us / US_PER_MS if device is None else device.exposed_ns / NS_PER_MS
        for kind, sums in step.windows.items():
            if device is not None:
                sums.length_ns, sums.filled_ns = device.waits_ns[kind.value], device.filled_ns[kind.value]
            self._windows[kind].join(sums)
        for name, value in _bytes_of(report).items():
            self._peaks[name] = max(self._peaks[name], value)

    def take(self) -> dict[str, float]:
        """The figures of a step, and start anew. Every rank calls it at the same step.

        Times are means over ranks and steps, in milliseconds; bytes are those of the rank that holds most.
        """
        waits, gradients = self._windows[WindowKind.PP_WAIT], self._before_backward
        # A mean over the ranks of fractions: multiplied by the steps that the sums below are divided by.
        bubble = (waits.length_ns - waits.filled_ns) / max(1, self._length_ns) * self._steps
        sums = [self._hidden_ms, self._exposed_ms, self._delayed_ns / NS_PER_MS, bubble]
        sums += [gradients.length_ns / NS_PER_MS, gradients.filled_ns / NS_PER_MS]
        for found in self._windows.values():
            sums += [ns / NS_PER_MS for ns in (found.length_ns, found.filled_ns, found.overrun_ns)]
            sums.append(float(found.windows))
        ranks = torch.distributed.get_world_size()
        means = self._reduced(sums, torch.distributed.ReduceOp.SUM)
        means = [value / ranks / max(1, self._steps) for value in means]
        peaks = self._reduced([float(value) for value in self._peaks.values()], torch.distributed.ReduceOp.MAX)
        self._reset()
        return {PREFIX + name: value for name, value in (_named(means, peaks) | self._predicted).items()}

    def _reduced(self, values: list[float], operation: torch.distributed.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(tensor, op=operation)
        reduced: list[float] = tensor.tolist()
        return reduced


_PEAKS = (
    "kept_bytes_per_microbatch",
    "dropped_bytes_per_microbatch",
    "kept_peak_bytes",
    "held_peak_bytes",
    "prefetched_peak_bytes",
)


def _bytes_of(report: StepReport) -> dict[str, int]:
    kept: dict[object, int] = {}
    dropped: dict[object, int] = {}
    for layer in report.layers:
        kept[layer.microbatch] = kept.get(layer.microbatch, 0) + layer.kept_bytes
        dropped[layer.microbatch] = dropped.get(layer.microbatch, 0) + layer.dropped_bytes
    values = (
        max(kept.values(), default=0),
        max(dropped.values(), default=0),
        report.kept_peak_bytes,
        report.held_peak_bytes,
        report.prefetched_peak_bytes,
    )
    return dict(zip(_PEAKS, values, strict=True))


def _named(means: list[float], peaks: list[float]) -> dict[str, float]:
    hidden_ms, exposed_ms, delayed_ms, bubble, gradient_wait_ms, gradient_filled_ms, *by_kind = means
    named = {"hidden_recompute_ms": hidden_ms, "exposed_recompute_ms": exposed_ms}
    if delayed_ms:
        named["delayed_wgrad_ms"] = delayed_ms
    for number, kind in enumerate(WindowKind):
        window_ms, filled_ms, overrun_ms, windows = by_kind[4 * number : 4 * number + 4]
        if windows:
            named[f"windows/{kind.value}"] = windows
            named[f"window_ms/{kind.value}"] = window_ms
            named[f"filled_ms/{kind.value}"] = filled_ms
            named[f"overrun_ms/{kind.value}"] = overrun_ms
        if windows and kind is WindowKind.PP_WAIT:
            named["bubble_fraction"] = bubble
            named["gradient_wait_ms"], named["gradient_wait_filled_ms"] = gradient_wait_ms, gradient_filled_ms
    return named | dict(zip(_PEAKS, peaks, strict=True))
