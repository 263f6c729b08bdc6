"""Communication and recompute of one microbatch: each alone, and both at a time.

    recompute alone:      comp: | R R R R R R |
    communication alone:  link: | all_reduce all_reduce all_reduce .. |
    both:                 comp: | R R R R R R |            mark 1 behind the last replay
                          link: | all_reduce all_reduce .. |          mark 2 behind the last transfer

The replays run on the compute stream here, so that a mark can stand behind them; what they contend for is the same. The
transfers are those of the microbatch, repeated until they last about 1.25 times as long as the replays, so that all of
the recompute runs beside a transfer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron.overlap.adapters.tensor_parallel_random import TrackerRng
from megatron.overlap.adapters.transformer_layer import TransformerLayerAdapter
from megatron.overlap.binder import Binder
from megatron.overlap.measuring.clocks import Clock
from megatron.overlap.replacements import Replacements
from overlap_recompute.runtime import InlineLane, Policy, Runtime
from tools.stage_bench_lib.arms import middle_us
from tools.stage_bench_lib.collectives import EmulatedCollectives
from tools.stage_bench_lib.link import Link
from tools.stage_bench_lib.stage import Stage

KEY = "alone"
LONGER = 1.25
WARM_UP_ROUNDS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Medians, of one microbatch."""

    recompute_us: float
    """All units that can be dropped, nothing beside them."""
    communication_us: float
    """All collectives of the forward and the backward pass, nothing beside them."""
    stated_us: float
    """What alpha and bandwidth say about the same transfers."""
    transfers: int
    wire_bytes: int
    """Of these transfers."""
    recompute_beside_us: float
    """The same units while transfers are in flight."""
    train_us: float
    """A train of transfers that lasts a little longer than the replays, alone."""
    train_beside_us: float
    """The same train with the replays beside it."""

    @property
    def recompute_slowdown(self) -> float | None:
        """Of recompute by communication; None where there is no recompute."""
        return self.recompute_beside_us / self.recompute_us if self.recompute_us else None

    @property
    def communication_slowdown(self) -> float | None:
        """Of communication by recompute, over a train of which about four fifths have recompute beside them."""
        return self.train_beside_us / self.train_us if self.train_us else None


def measure_alone(stage: Stage, collectives: EmulatedCollectives, link: Link, clock: Clock, *, rounds: int) -> Alone:
    """Measure on a stage that nothing is attached to.

    Args:
        stage: whose microbatch it is.
        collectives: tells which transfers it has.
        link: what carries them.
        clock: of the device.
        rounds: counted ones.
    """
    sizes = transfers_of(stage, collectives, clock)
    replacements = Replacements()
    runtime = Runtime(Policy.recompute_all(), lane=InlineLane(), rng_providers=(TrackerRng(),))
    found: dict[str, list[float]] = {}

    def note(name: str, us: float, counts: bool) -> None:
        if counts:
            found.setdefault(name, []).append(us)

    try:
        TransformerLayerAdapter(Binder(runtime, replacements, replays_hooks=False)).attach_all([stage.model])
        runtime.know_storages(stage.model.module)
        train: list[int] = []
        for number in range(rounds + WARM_UP_ROUNDS):
            counts = number >= WARM_UP_ROUNDS
            alone_us, _ = _round(stage, runtime, link, clock, ())
            note("recompute", alone_us, counts)
            note("communication", _train_us(link, clock, sizes), counts)
            train = train or _train(link, sizes, alone_us)
            note("train", _train_us(link, clock, train), counts)
            beside_us, train_beside_us = _round(stage, runtime, link, clock, train)
            note("recompute beside", beside_us, counts)
            note("train beside", train_beside_us, counts)
    finally:
        runtime.detach()
        replacements.restore()
    middle = {name: middle_us(values) for name, values in found.items()}
    return Alone(
        recompute_us=middle["recompute"],
        communication_us=middle["communication"],
        stated_us=sum(link.rate.duration_us(size) for size in sizes),
        transfers=len(sizes),
        wire_bytes=sum(sizes),
        recompute_beside_us=middle["recompute beside"],
        train_us=middle["train"],
        train_beside_us=middle["train beside"],
    )


def transfers_of(stage: Stage, collectives: EmulatedCollectives, clock: Clock) -> list[int]:
    """Bytes over the wire of each collective of one microbatch's two passes."""
    collectives.take()
    collectives.active = True
    try:
        stage.step(stage.forward_step, clock, microbatches=1)
    finally:
        collectives.active = False
    return collectives.take()


def _train(link: Link, sizes: Sequence[int], at_least_us: float) -> list[int]:
    """The transfers over and over, until they last long enough."""
    once_us = sum(link.rate.duration_us(size) for size in sizes)
    if not once_us:
        return []
    train = [*sizes] * math.ceil(at_least_us * LONGER / once_us)
    total_us = sum(link.rate.duration_us(size) for size in train)
    while total_us - link.rate.duration_us(train[-1]) > at_least_us * LONGER:
        total_us -= link.rate.duration_us(train.pop())
    return train


def _train_us(link: Link, clock: Clock, sizes: Sequence[int]) -> float:
    stamps = [clock.stamp()]
    transits = [link.start(size) for size in sizes]
    for transit in transits:
        transit.wait()
    stamps.append(clock.stamp())
    return clock.times_us(stamps)[1]


def _round(stage: Stage, runtime: Runtime, link: Link, clock: Clock, train: Sequence[int]) -> tuple[float, float]:
    """A forward pass, its units replayed beside a train of transfers, a backward pass; times of units and train."""
    stage.model.zero_grad_buffer()
    with runtime.microbatch(KEY):
        output = stage.forward(stage.forward_step)
    stamps = [clock.stamp()]
    transits = [link.start(size) for size in train]
    runtime.queue.fill(lambda: False)
    stamps.append(clock.stamp())
    for transit in transits:
        transit.wait()
    stamps.append(clock.stamp())
    stage.backward(output)
    runtime.step_end()
    _, replayed_us, arrived_us = clock.times_us(stamps)
    return replayed_us, arrived_us
