"""Figures gathered between two lines of the log."""

import time
from dataclasses import dataclass

import torch

from megatron.pretrain.training.step import StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalFigures:
    """Averages over the iterations since the last line."""

    iterations: int
    elapsed_s: float
    loss: float | None
    grad_norm: float | None
    zeros_in_grad: int | None
    skipped: int
    nan: int


class Interval:
    """Adds up steps without waiting for the device: losses stay where they are until `close`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was added and start the clock."""
        self._losses: list[torch.Tensor] = []
        self._last: StepResult | None = None
        self._iterations = 0
        self._skipped = 0
        self._started_s = time.perf_counter()

    def add(self, result: StepResult) -> None:
        """Count one step."""
        self._iterations += 1
        self._skipped += not result.updated
        self._last = result
        if result.loss is not None and result.updated:
            self._losses.append(result.loss.detach())

    def pause(self, seconds: float) -> None:
        """Leave out time that was spent on something else than iterations (evaluation, a checkpoint)."""
        self._started_s += seconds

    def close(self) -> IntervalFigures:
        """Return the figures and start anew. Waits for the device."""
        losses = torch.stack(self._losses).float().tolist() if self._losses else []
        finite = [loss for loss in losses if loss == loss and abs(loss) != float("inf")]
        last = self._last
        figures = IntervalFigures(
            iterations=self._iterations,
            elapsed_s=time.perf_counter() - self._started_s,
            loss=sum(finite) / len(finite) if finite else (losses[-1] if losses else None),
            grad_norm=None if last is None or last.grad_norm is None else float(last.grad_norm),
            zeros_in_grad=None if last is None else last.zeros_in_grad,
            skipped=self._skipped,
            nan=len(losses) - len(finite),
        )
        self.reset()
        return figures
