"""Overlapped recompute of one rank, from the model's units to the figures of a step."""

import logging
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor, nn

from megatron.overlap.adapters.collectives import WindowedCollectives
from megatron.overlap.adapters.tensor_parallel_layers import hook_layers
from megatron.overlap.adapters.tensor_parallel_mappings import hook_mappings
from megatron.overlap.adapters.tensor_parallel_random import TrackerRng
from megatron.overlap.adapters.transformer_layer import TransformerLayerAdapter
from megatron.overlap.adapters.weight_gradients import delay_weight_gradients
from megatron.overlap.binder import Binder
from megatron.overlap.closing import Closing, DeviceClosing, HostClosing
from megatron.overlap.delayed_gradients import DelayedGradients
from megatron.overlap.device_lane import lane_of, ring_of
from megatron.overlap.errors import BackwardError
from megatron.overlap.figures import Figures, StepFigures
from megatron.overlap.flight import FlightRecorder
from megatron.overlap.groups import kinds_of_groups
from megatron.overlap.pipeline_windows import PipelineWindows
from megatron.overlap.policy import choose_policy, summary_of
from megatron.overlap.replacements import Replacements
from megatron.overlap.settings import MicrobatchKey, OverlapSettings
from megatron.overlap.step_marks import StepMarks
from megatron.overlap.step_trace import StepTrace
from megatron.overlap.window_lengths import WindowLengths
from megatron.overlap.window_log import WindowLog
from megatron.overlap.windows import Windows
from overlap_recompute.ops import EventRing, StreamMarks
from overlap_recompute.plan.actions import Kind
from overlap_recompute.plan.errors import ConfigError, UserError
from overlap_recompute.runtime import Journal, Place, Policy, Runtime, StepReport
from overlap_recompute.schedules.builders import pipeline_schedule

logger = logging.getLogger(__name__)

ForwardStep = Callable[[Any, nn.Module], tuple[Tensor, Callable[..., Any]]]
LAYERS_AHEAD = 2
"""Without a cap of the user's: bytes of so many layers may be brought back ahead, the one in backward and the next."""
WINDOWS_PER_LAYER = 2
"""Of a layer's backward pass: one behind its attention, one behind its feed-forward block."""


class OverlapSession:
    """Attaches the units of this rank's model chunks, opens windows in training steps, and takes all of it back.

    Args:
        settings: the place of this rank and what to drop.
        chunks: its model chunks, wrapped as they train, on their device.
        journal: where to record every happening; None for no record but the marks.
        ring: where passes, waits and replays are marked, traced or not; None: one of the usual size.

    Raises:
        ConfigError: a unit that was named cannot be dropped here, or the ranks were given different flags.
        UserError: megatron-core has another shape than the adapters were written for.
    """

    def __init__(
        self,
        settings: OverlapSettings,
        chunks: Sequence[DistributedDataParallel],
        journal: Journal | None = None,
        ring: EventRing | None = None,
    ) -> None:
        self.settings = settings
        self._chunks = {id(chunk): number for number, chunk in enumerate(chunks)}
        self._counts = [0] * len(chunks)
        self._replacements = Replacements()
        ring = ring_of(settings) if ring is None else ring
        self._marks = StepMarks(ring)
        self._flight = FlightRecorder(settings, self._marks)
        self._trace: StepTrace | None = None
        self._delayed: DelayedGradients | None = None
        on_device = settings.device.type == "cuda"
        self.runtime = Runtime(
            Policy.save_all(),
            lane=lane_of(settings.device, ring),
            prefetch_cap_bytes=settings.prefetch_cap_bytes or 0,
            rng_providers=(TrackerRng(),),
            journal=journal,
            marks=self._marks.replays,
            verify=settings.verify,
            replay_inner_hooks=gathers_in_hooks(chunks),
        )
        self.figures = Figures(settings.device, settings.predicted)
        try:
            _check_same_flags(settings)
            if settings.trace_folder is not None:
                self._trace = StepTrace(settings, settings.trace_folder, self._marks)
            log = WindowLog(marks=self._marks)
            units_per_window = self._attach(chunks)
            closing: Closing = (
                DeviceClosing(settings.units_per_window or units_per_window) if on_device else HostClosing()
            )
            lengths = None if on_device else WindowLengths()
            self.windows = Windows(self.runtime, closing, log, fills=settings.fills, lengths=lengths)
            self.pipeline_waits = PipelineWindows(self.windows)
            """What the schedules of `megatron.overlap.pipeline` hand their waits to (kind `pp_wait`)."""
            if settings.delays_weight_gradients:
                self._delayed = DelayedGradients(lambda: self.windows.active)
                delay_weight_gradients(self._replacements, chunks, self._delayed)
            collectives = WindowedCollectives(self.windows, kinds_of_groups(), self._delayed)
            hook_mappings(self._replacements, collectives)
            hook_layers(self._replacements, collectives)
        except BaseException:
            self._detach()
            raise

    def _attach(self, chunks: Sequence[DistributedDataParallel]) -> int:
        """Name the units, settle the policy; returns how many units a window of a GPU takes."""
        binder = Binder(self.runtime, self._replacements, replays_hooks=gathers_in_hooks(chunks))
        layers = TransformerLayerAdapter(binder).attach_all(chunks)
        for chunk in chunks:
            # The wrapper's own `buffers` are those of gradients; parameters are views of others, whose storage counts.
            self.runtime.know_storages(chunk.module)
        policy, notes = choose_policy(self.settings, self.runtime.units, binder.refused, layers)
        self.runtime.set_policy(policy)
        for note in notes:
            logger.info("note: %s", note)
        logger.info("overlapped recompute on stage %d: %s", self.settings.stage, summary_of(policy))
        spread = math.ceil(len(policy.rules) / max(1, len(layers)) / WINDOWS_PER_LAYER)
        return self.settings.units_per_window or spread

    def forward_step(self, run: ForwardStep) -> ForwardStep:
        """The forward step that schedules call, with what it saves for backward under the policy."""

        def step(iterator: Any, model: nn.Module) -> tuple[Tensor, Callable[..., Any]]:
            chunk = self._chunks[id(model)]
            key = MicrobatchKey(self.settings.stage, chunk, self._counts[chunk])
            self._counts[chunk] += 1
            with self.microbatch(key):
                output, loss = run(iterator, model)
            self._marks.follow_backward(output, key)
            return output, loss

        return step

    @contextmanager
    def microbatch(self, key: MicrobatchKey) -> Iterator[None]:
        """The forward pass of one microbatch through one chunk."""
        self._marks.begin_forward(key)
        with self.runtime.microbatch(key):
            yield
        self._marks.end_forward(key)

    @contextmanager
    def step(self) -> Iterator[None]:
        """One training step: all forward and backward passes, without the optimizer.

        Raises:
            UnfinishedError: something that was dropped was never used.
            BackwardError: a backward pass failed; what fails in a replay is a `ReplayError`.
        """
        self._counts = [0] * len(self._counts)
        if len(self._counts) > 1:
            self.expect(self._interleaved_order())
        self.windows.begin_step()
        begin_ns = time.perf_counter_ns()
        try:
            yield
            report = self.runtime.step_end()
        except BaseException as error:
            place = _place_to_name(error, self.runtime.last_read)
            self.runtime.abort()
            if self._delayed is not None:
                self._delayed.forget()
            self._leave_marks(error, place)
            if place is None:
                raise
            raise BackwardError(place, error) from error
        finally:
            self.windows.active = False
        length_ns = time.perf_counter_ns() - begin_ns
        times = self._trace.end_step() if self._trace is not None else None
        step = StepFigures(
            report=report,
            windows=self.windows.log.take(),
            before_backward=self.pipeline_waits.take_before_backward(),
            length_ns=length_ns,
            delayed_ns=0 if self._delayed is None else self._delayed.take_spent_ns(),
            device=times if isinstance(self._marks.ring, StreamMarks) else None,
        )
        self.figures.add(step)
        if self.settings.prefetch_cap_bytes is None:
            self._allow_layers_ahead(report)

    def iteration(self) -> AbstractContextManager[None]:
        """Around one iteration, update included: nothing to do."""
        return nullcontext()

    def settle(self) -> None:
        """Between iterations: nothing to do."""

    def expect(self, order: Iterable[MicrobatchKey]) -> None:
        """Announce the order of this step's backward passes; without interleaving it is that of the forward passes."""
        self.runtime.queue.expect(order)

    def leave_last_marks(self, why: str) -> None:
        """From the thread that ends a process whose main thread is stuck: what this rank did last."""
        self._flight.write_once(why)

    def close(self) -> None:
        """Take everything back: forwards, names, threads; complete the trace. Calling it again does nothing."""
        self.windows.close()
        self._detach()

    def __enter__(self) -> "OverlapSession":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _detach(self) -> None:
        self.runtime.detach()
        self._replacements.restore()
        if self._trace is not None:
            self._trace.close()

    def _leave_marks(self, error: BaseException, place: Place | None) -> None:
        """What this rank did last, for whoever looks for the cause; an exit on purpose has none."""
        if not isinstance(error, Exception | KeyboardInterrupt):
            return
        drained = self._flight.write(error if place is None else BackwardError(place, error))
        if self._trace is not None and drained is not None:
            self._trace.keep(drained)

    def _allow_layers_ahead(self, report: StepReport) -> None:
        """The first step brings nothing back ahead, and shows what layers drop."""
        cap_bytes = LAYERS_AHEAD * max((layer.dropped_bytes for layer in report.layers), default=0)
        self.runtime.queue.cap_bytes = max(self.runtime.queue.cap_bytes or 0, cap_bytes)

    def _interleaved_order(self) -> list[MicrobatchKey]:
        settings = self.settings
        grid = pipeline_schedule(settings.stages, len(self._counts), settings.microbatches)
        return [
            MicrobatchKey(settings.stage, action.chunk, action.microbatch)
            for action in grid[settings.stage]
            if action.kind is Kind.B
        ]


def gathers_in_hooks(chunks: Sequence[DistributedDataParallel]) -> bool:
    """Whether every module has the hooks of --overlap-param-gather; a replay finds all parameters gathered."""
    return any(chunk.use_forward_hook for chunk in chunks)


def _place_to_name(error: BaseException, place: Place | None) -> Place | None:
    """What an error in backward must be told with; None: it names its place, or there is none to name."""
    return None if isinstance(error, UserError) or not isinstance(error, Exception) else place


def _check_same_flags(settings: OverlapSettings) -> None:
    ranks = torch.distributed.get_world_size()
    if ranks == 1:
        return
    marks = torch.zeros(ranks, dtype=torch.int64, device=settings.device)
    marks[torch.distributed.get_rank()] = zlib.crc32(settings.flags.encode())
    torch.distributed.all_reduce(marks)
    found = marks.tolist()
    other = next((rank for rank, mark in enumerate(found) if mark != found[0]), None)
    if other is not None:
        what = "flags" if settings.planned is None else "flags or another plan"
        raise ConfigError(
            f"other --overlap-recompute {what} on rank {other} than on rank 0 (rank {settings.rank}: {settings.flags})",
            f"the same {what.replace('another', 'the same')} on every rank",
            "start every rank with the same command line, and where a plan is read from copies that are the same",
        )
