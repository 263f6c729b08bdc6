"""A run that measures its first iterations and then goes on as asked; after a while it may measure anew.

```
| warm-up, probed | measured ........ | links, records, profile | without marks, recompute as the flags say ...
  ^                                                                                                        |
  '------------------------------------------ after so many iterations -----------------------------------'
```
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel

from megatron.overlap.measuring.assemble import assemble
from megatron.overlap.measuring.drift import Drift
from megatron.overlap.measuring.finish import record_of
from megatron.overlap.measuring.gather import gather_records
from megatron.overlap.measuring.lean import lean_session, shared_counted
from megatron.overlap.measuring.links import measure_links, tasks_of_run
from megatron.overlap.measuring.memory import base_of
from megatron.overlap.measuring.session import MeasuringSession
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.profile_facts import ProfileFacts

if TYPE_CHECKING:
    from megatron.overlap.pipeline.waits import PipelineWaits

logger = logging.getLogger(__name__)

BYTES_PER_MIB = 1 << 20


class Next(Protocol):
    """What takes over when the profile is there (`OverlapSession`)."""

    figures: Any
    pipeline_waits: Any

    def forward_step(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The forward step that a schedule is to call."""
        ...

    def step(self) -> AbstractContextManager[None]:
        """Around all passes of a step."""
        ...

    def leave_last_marks(self, why: str) -> None:
        """The process is ended because its main thread is stuck."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringPlan:
    """What to measure, and what to do then."""

    warm_up: int
    """Iterations that are not counted; at least one."""
    iterations: int
    """Iterations that are."""
    facts: Callable[[], ProfileFacts]
    """What the profile holds besides; asked once."""
    base_bytes: int
    """Memory before the model existed."""
    settled_bytes: Callable[[], int]
    """Memory that is taken now, without what an allocator holds for later."""
    follow: Callable[[Profile], AbstractContextManager[Any]]
    """Called on every rank with the same measurements: opens what takes over (`Next`), or None for plain training."""
    uses_waits: bool
    """Whether what takes over recomputes in the waits of our own schedules."""
    length: int
    """Iterations of the run."""
    lean: bool = False
    """Whether iterations are measured while every unit is dropped and replayed on demand, in the memory of that."""
    delays_weight_gradients: bool = False
    """Whether the run computes weight gradients later than upstream, and so is measured (`delayed_gradients`)."""
    again_after: int | None = None
    """Iterations of what took over until it is taken back and the run measured anew; None: never."""

    @property
    def takes(self) -> int:
        """Iterations of one measurement."""
        return self.warm_up + self.iterations


class MeasuredStart:
    """Stands where overlapped recompute stands in a training step.

    Args:
        plan: what to measure.
        chunks: the model chunks of this rank.
        device: where they are.
        stage: pipeline rank.
        stages: pipeline-parallel size.
    """

    def __init__(
        self,
        plan: MeasuringPlan,
        chunks: Sequence[DistributedDataParallel],
        device: torch.device,
        *,
        stage: int,
        stages: int,
    ) -> None:
        self._plan, self._chunks, self._device = plan, chunks, device
        self._stage, self._stages = stage, stages
        self._stack = ExitStack()
        self._facts: ProfileFacts | None = None
        self._has_profile = False
        self._session: MeasuringSession | None = self._open()
        self._next: Next | None = None
        self._run: Callable[..., Any] | None = None
        self._step: Callable[..., Any] | None = None
        self._done, self._left = 0, plan.length
        self.figures = _Figures(self)
        self.pipeline_waits: PipelineWaits | None = _Waits(self) if plan.uses_waits else None

    @property
    def following(self) -> Next | None:
        """What has taken over; None before that, and where nothing does."""
        return self._next

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Around one iteration."""
        if self._session is None:
            yield
            return
        with self._session.iteration(self._done >= self._plan.warm_up):
            yield

    def step(self) -> AbstractContextManager[None]:
        """Around all passes of an iteration."""
        following = self._session or self._next
        return following.step() if following is not None else nullcontext()

    def forward_step(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The forward step that schedules call: measured first, then that of what takes over."""
        assert self._session is not None, "asked for once, before the first iteration"
        self._run, self._step = run, self._session.forward_step(run)
        return lambda iterator, model: self._step(iterator, model)  # type: ignore[misc]

    def settle(self) -> None:
        """Between iterations: when enough is measured, make the profile and hand over. Collective then."""
        self._done += 1
        self._left -= 1
        if self._session is None:
            self._measure_again()
            return
        self._session.sort()
        if self._done < self._plan.takes:
            return
        session, self._session = self._session, None
        session.close()
        self._done = 0
        profile = self._profile(session)
        self._has_profile = True
        self._next = self._stack.enter_context(self._plan.follow(profile))
        self.figures.drift = Drift(profile)
        self._step = self._run if self._next is None or self._run is None else self._next.forward_step(self._run)

    def leave_last_marks(self, why: str) -> None:
        """What has taken over leaves its marks; before that there are none to leave."""
        if self._next is not None:
            self._next.leave_last_marks(why)

    def close(self) -> None:
        """Take everything back."""
        if self._session is not None:
            if not self._has_profile:
                logger.warning(
                    "no profile was written: the run ended after %d of %d iterations that it takes",
                    self._done,
                    self._plan.takes,
                )
            self._session.close()
        self._stack.close()

    def __enter__(self) -> "MeasuredStart":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _measure_again(self) -> None:
        """When it is time, and the run goes on long enough to gain from it: the same as at the start."""
        due_after = self._plan.again_after
        if due_after is None or self._done < due_after or self._left <= self._plan.takes or self._run is None:
            return
        self._next, self.figures.drift = None, None
        self._stack.close()
        self._session, self._done = self._open(), 0
        self._step = self._session.forward_step(self._run)

    def _open(self) -> MeasuringSession:
        if not self._plan.lean:
            return MeasuringSession(
                self._chunks, self._device, delays_weight_gradients=self._plan.delays_weight_gradients
            )
        if self._facts is None:
            facts = self._plan.facts()
            self._facts = replace(facts, counted=shared_counted(facts.counted, self._device))
        return lean_session(
            self._chunks,
            self._device,
            self._facts.counted,
            delays_weight_gradients=self._plan.delays_weight_gradients,
        )

    def _profile(self, session: MeasuringSession) -> Profile:
        if session.kept_peak_bytes is not None:
            kept_mib = session.kept_peak_bytes / BYTES_PER_MIB
            logger.info("measured with every unit recomputed on demand: %.3f MiB kept for backward at most", kept_mib)
        if self._facts is None:
            self._facts = self._plan.facts()
        facts = self._facts
        tasks = tasks_of_run(facts.payload_bytes, facts.boundary_bytes)
        links = measure_links(tasks, session.marks.clock, self._device)
        record = None
        base_bytes = base_of(
            self._device,
            self._chunks,
            facts.static,
            before_bytes=self._plan.base_bytes,
            now_bytes=self._plan.settled_bytes(),
        )
        if parallel_state.get_tensor_model_parallel_rank() == 0:
            record = record_of(
                session, self._chunks, stage=self._stage, stages=self._stages, links=links,
                base_bytes=base_bytes, device=self._device,
            )  # fmt: skip
        return assemble(gather_records(record, self._device), facts)


class _Figures:
    """None of its own."""

    def __init__(self, start: MeasuredStart) -> None:
        self._start = start
        self.drift: Drift | None = None
        """Compares what follows with what was measured."""

    def take(self) -> dict[str, float]:
        """Those of what has taken over."""
        following = self._start.following
        figures: dict[str, float] = following.figures.take() if following is not None else {}
        if self.drift is not None:
            for message in self.drift.look(figures):
                logger.warning("%s", message)
        return figures


class _Waits:
    """The waits of our own schedules: left alone while the run is measured."""

    def __init__(self, start: MeasuredStart) -> None:
        self._start = start

    def finish(self, pending: Any, **details: Any) -> None:
        """Wait, or let what has taken over use the time."""
        following = self._start.following
        if following is None:
            pending.wait()
        else:
            following.pipeline_waits.finish(pending, **details)
