"""Measures the iterations of one rank: plain training with marks, no window filled.

Nothing is dropped; or, where the model was counted, everything, so that an iteration needs no more memory than with
recompute on demand.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor, nn
from torch.autograd import Variable

from megatron.overlap.adapters.tensor_parallel_layers import hook_layers
from megatron.overlap.adapters.tensor_parallel_mappings import hook_mappings
from megatron.overlap.adapters.transformer_layer import TransformerLayerAdapter
from megatron.overlap.adapters.weight_gradients import delay_weight_gradients
from megatron.overlap.binder import Binder
from megatron.overlap.delayed_gradients import DelayedGradients
from megatron.overlap.groups import kinds_of_groups
from megatron.overlap.measuring.asides import without_asides
from megatron.overlap.measuring.clocks import NS_PER_US, clock_of
from megatron.overlap.measuring.collectives import MeasuredCollectives
from megatron.overlap.measuring.counted_probe import CountedProbe
from megatron.overlap.measuring.iterations import Samples, usual
from megatron.overlap.measuring.marks import At, Marks
from megatron.overlap.measuring.on_demand import DroppedSites, OnDemand
from megatron.overlap.measuring.outside import OutsideCollectives
from megatron.overlap.measuring.probe import Probe
from megatron.overlap.measuring.sites import MeasuredSites
from megatron.overlap.replacements import Replacements
from megatron.overlap.session import gathers_in_hooks
from overlap_recompute.plan.counted import CountedModel

logger = logging.getLogger(__name__)

ForwardStep = Callable[[Any, nn.Module], tuple[Tensor, Callable[..., Any]]]
TRIAL_MARKS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredModel:
    """What the session knows about the model besides its samples."""

    layers: dict[int, nn.Module]
    """By index in the model."""
    refused: dict[tuple[str, int], str]
    """Units that cannot be dropped, and why."""


class MeasuringSession:
    """Sets marks in the model chunks of this rank, and takes all of it back.

    The first forward pass of each chunk is looked at by the probe (which unit reads which), so the first iteration must
    not count.

    Args:
        chunks: the model chunks, wrapped as they train.
        device: where they are.
        counted: the model, to drop every unit that can be dropped, and to replay it on demand; None: nothing is.
        delays_weight_gradients: compute weight gradients as late as `--overlap-recompute-delay-wgrad` does.
    """

    def __init__(
        self,
        chunks: Sequence[DistributedDataParallel],
        device: torch.device,
        counted: CountedModel | None = None,
        *,
        delays_weight_gradients: bool = False,
    ) -> None:
        self._chunks = {id(chunk): number for number, chunk in enumerate(chunks)}
        self._replacements = Replacements()
        self.marks = Marks(clock_of(device))
        self.probe: Probe | CountedProbe
        self._iterations: list[Samples] = []
        self._probed: set[int] = set()
        self._counts = False
        self.is_known = True
        """Whether the layers are those that were counted."""
        self._on_demand: OnDemand | None = None
        try:
            if counted is None:
                self.probe = Probe(chunks, device)
                self.model = self._attach(MeasuredSites(self.marks, self.probe, self._replacements), chunks, True)
            else:
                self._drop(chunks, device, counted)
            delayed = DelayedGradients(lambda: self.marks.active) if delays_weight_gradients else None
            if delayed is not None:
                delay_weight_gradients(self._replacements, chunks, delayed)
            collectives = MeasuredCollectives(self.marks, kinds_of_groups(), delayed)
            hook_mappings(self._replacements, collectives)
            hook_layers(self._replacements, collectives)
            self._outside = OutsideCollectives(self.marks, self._replacements)
            for number, chunk in enumerate(chunks):
                forward = partial(self._model_forward, chunk.forward, number)
                self._replacements.set(chunk, "forward", forward)
        except BaseException:
            self.close()
            raise

    def _attach(
        self, sites: MeasuredSites, chunks: Sequence[DistributedDataParallel], replays_hooks: bool
    ) -> MeasuredModel:
        binder = Binder(sites, self._replacements, replays_hooks=replays_hooks)
        TransformerLayerAdapter(binder).attach_all(chunks)
        return MeasuredModel(layers=sites.layers, refused=binder.refused)

    def _drop(self, chunks: Sequence[DistributedDataParallel], device: torch.device, counted: CountedModel) -> None:
        replays_hooks = gathers_in_hooks(chunks)
        self.probe = probe = CountedProbe(counted, device)
        self._on_demand = OnDemand(self.marks, len(chunks), replays_hooks=replays_hooks)
        sites = DroppedSites(self._on_demand.runtime, self.marks, probe, self._replacements)
        self.model = self._attach(sites, chunks, replays_hooks)
        self._on_demand.drop_all([chunk.module for chunk in chunks])
        self.is_known = probe.know(self.model.layers)

    @contextmanager
    def iteration(self, counts: bool) -> Iterator[None]:
        """One iteration, update included; `counts`: keep what it shows."""
        marks = self.marks
        marks.add(At.ITERATION)
        self._outside.active = True
        try:
            yield
        finally:
            self._outside.active = False
        marks.add(At.ITERATION_END)
        self._counts = counts

    def sort(self) -> None:
        """After an iteration, outside of its time: sort its marks."""
        found, times_us = without_asides(*self.marks.take())
        if self._counts:
            samples = Samples(chunks=len(self._chunks))
            samples.add(found, times_us, self.reads)
            self._iterations.append(samples)

    @contextmanager
    def step(self) -> Iterator[None]:
        """All passes of an iteration; evaluation and update are left alone."""
        self.marks.active = True
        try:
            with self._on_demand.step() if self._on_demand is not None else nullcontext():
                yield
        finally:
            self.marks.active = False
        self.marks.add(At.STEP_END)

    def forward_step(self, run: ForwardStep) -> ForwardStep:
        """The forward step that schedules call, between two marks."""

        def step(iterator: Any, model: nn.Module) -> tuple[Tensor, Callable[..., Any]]:
            marks, chunk = self.marks, self._chunks[id(model)]
            if not marks.active:
                return run(iterator, model)
            marks.add(At.PASS, layer=chunk)
            with nullcontext() if chunk in self._probed else self.probe.look(), self._microbatch(chunk):
                output, loss = run(iterator, model)
            self._probed.add(chunk)
            if output.requires_grad:
                output.register_hook(partial(self._begin_backward, chunk))
            if not parallel_state.is_pipeline_last_stage(ignore_virtual=True) or chunk != len(self._chunks) - 1:
                marks.add(At.PASS_END, layer=chunk)
                return output, loss
            return output, partial(self._loss, loss, chunk)

        return step

    @property
    def kept_peak_bytes(self) -> int | None:
        """Most that a step kept for backward while every unit was dropped; None: none was."""
        return None if self._on_demand is None else self._on_demand.kept_peak_bytes

    @property
    def samples(self) -> Samples:
        """Of all iterations that count and were not disturbed."""
        return usual(self._iterations, len(self._chunks))

    @property
    def reads(self) -> dict[int, dict[str, tuple[str, ...]]]:
        """By layer and unit: the units whose outputs it takes."""
        return {
            layer: {name: tuple(sorted(found.reads)) for name, found in units.items()}
            for layer, units in self.probe.found.items()
        }

    def close(self) -> None:
        """Take all marks back. Calling it again does nothing."""
        self.marks.active = False
        if self._on_demand is not None:
            self._on_demand.runtime.detach()
        self._replacements.restore()

    def _microbatch(self, chunk: int) -> AbstractContextManager[None]:
        return nullcontext() if self._on_demand is None else self._on_demand.microbatch(chunk)

    def _loss(self, loss: Callable[..., Any], chunk: int, *args: Any, **options: Any) -> Any:
        found = loss(*args, **options)
        self.marks.add(At.PASS_END, layer=chunk)
        return found

    def _model_forward(self, forward: Callable[..., Any], chunk: int, *args: Any, **options: Any) -> Any:
        if self.marks.active:
            self.marks.add(At.MODEL, layer=chunk)
        return forward(*args, **options)

    def _begin_backward(self, chunk: int, gradient: Tensor) -> None:
        if self.marks.active:
            self.marks.add(At.BACKWARD, layer=chunk)
            Variable._execution_engine.queue_callback(partial(self.marks.add, At.BACKWARD_END, layer=chunk))


def cost_of_a_mark_us(device: torch.device) -> float:
    """Time that setting a mark takes on the host."""
    marks = Marks(clock_of(device))
    begin_ns = time.perf_counter_ns()
    for _ in range(TRIAL_MARKS):
        marks.add(At.UNIT, "unit", 0)
    return (time.perf_counter_ns() - begin_ns) / NS_PER_US / TRIAL_MARKS
