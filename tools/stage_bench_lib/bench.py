"""The whole measurement, from options to figures."""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from megatron.overlap.measuring.clocks import Clock, clock_of
from megatron.overlap.measuring.records import RankRecord
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.split import even_split
from tools.stage_bench_lib.alone import Alone, measure_alone
from tools.stage_bench_lib.arms import ARMS, ON_DEMAND, Samples, run_turn
from tools.stage_bench_lib.collectives import EmulatedCollectives
from tools.stage_bench_lib.compose import Composed, compose
from tools.stage_bench_lib.costs import Facts, facts_of, for_split, measure_costs, profile_of, used_memory
from tools.stage_bench_lib.energy import Meter, open_meter
from tools.stage_bench_lib.link import Link, open_link, pipeline_rate_of, rate_of
from tools.stage_bench_lib.options import Options
from tools.stage_bench_lib.room import (
    does_not_fit,
    most_layers,
    needed,
    room_bytes,
    shortage,
    without_optimizer_bytes,
)
from tools.stage_bench_lib.stage import Stage, build_stage, config_of


@dataclass(slots=True, kw_only=True)
class Bench:
    """What was found."""

    options: Options
    model: str
    """For people."""
    layers: int
    """That the stage had."""
    link: str
    """What carried the transfers."""
    microbatches: int = 0
    """Of a step of the stage."""
    in_flight: int = 0
    profile: Profile | None = None
    alone: Alone | None = None
    alone_reason: str = ""
    """Why it was not measured."""
    arms: dict[str, Samples] = field(default_factory=dict)
    """Those that fit."""
    refused: dict[str, str] = field(default_factory=dict)
    """The others: what is short."""
    composed: dict[str, Composed] = field(default_factory=dict)
    energy_reason: str = ""
    """Why the energy was not measured."""


def run_bench(options: Options, device: torch.device, words: Sequence[str], label: str) -> Bench:
    """Measure a stage, and simulate the pipeline.

    Args:
        options: of the command line.
        device: to measure on; the platform is installed for it.
        words: the command line.
        label: says what the figures are, for the profile.

    Raises:
        UserError: options that the trainer refuses, or a stage that does not fit.
    """
    stages, layers = options.pipeline_parallel, options.stage_layers
    base_bytes = used_memory(device)
    whole = config_of(options, layers=options.model.layers, stages=stages, stage=options.stage)
    facts = facts_of(whole, words, (rate_of(options), pipeline_rate_of(options)), label, device)
    with contextlib.ExitStack() as stack:
        link = open_link(options, device)
        stack.callback(link.close)
        collectives = stack.enter_context(EmulatedCollectives(link))
        meter, reason = open_meter(device)
        if meter is not None:
            stack.callback(meter.close)
        bench = Bench(
            options=options, model=facts.of_profile.model, layers=layers, link=link.describe(), energy_reason=reason
        )
        run = _Run(options, device, facts, link, collectives, clock_of(device), bench, base_bytes, meter)
        ends = run.ends()
        run.require_room(profile_of(ends, ends, facts))
        with run.built(layers=layers, stages=stages, stage=options.stage) as stage:
            bench.microbatches, bench.in_flight = stage.microbatches, stage.in_flight
            bench.profile = profile_of(run.costs(stage), ends, facts)
            run.measure(stage, bench.profile)
    _compose(bench, bench.profile)
    return bench


@dataclass(frozen=True, slots=True)
class _Run:
    options: Options
    device: torch.device
    facts: Facts
    link: Link
    collectives: EmulatedCollectives
    clock: Clock
    bench: Bench
    base_bytes: int
    meter: Meter | None

    @contextlib.contextmanager
    def built(self, *, layers: int, stages: int, stage: int) -> Iterator[Stage]:
        """A stage for as long as the context lasts; running out of memory is a fault that says what was there."""
        config = config_of(self.options, layers=layers * stages, stages=stages, stage=stage)
        try:
            with build_stage(config, self.device, stage) as found:
                yield found
        except torch.OutOfMemoryError as error:
            what = f"{self.options.preset}, stage {stage} of {stages} with {layers} layers"
            raise does_not_fit(what, str(error).split(". ")[0], max(0, layers // 2)) from error
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def ends(self) -> RankRecord:
        """Costs of embedding and head, from a model of one layer."""
        with self.built(layers=1, stages=1, stage=0) as stage:
            return self.costs(stage)

    def costs(self, stage: Stage) -> RankRecord:
        """Costs of what a stage holds."""
        options = self.options
        return measure_costs(
            stage, self.collectives, self.clock, self.facts,
            iterations=options.iterations * options.rounds, base_bytes=self.base_bytes,
        )  # fmt: skip

    def short(self, profile: Profile, arm: str, *, layers: int, in_flight: int) -> str:
        """What is short for an arm; empty where it fits."""
        free_bytes = room_bytes(self.options, self.device)
        return shortage(needed(profile, arm, self.options.stage, layers=layers, in_flight=in_flight), free_bytes)

    def require_room(self, profile: Profile) -> None:
        """Refuse a stage that cannot even run one microbatch without recompute, which its costs are measured with.

        Raises:
            UserError: with the layers that would fit.
        """
        if len(profile.kinds) != 1:
            raise ConfigError("several kinds of layers", "layers that are alike", "leave out the flag that mixes them")
        options, layers = self.options, self.bench.layers
        short = self.short(profile, ARMS[0], layers=layers, in_flight=1)
        if short:
            most = most_layers(lambda n: not self.short(profile, ARMS[0], layers=n, in_flight=1), layers)
            what = f"{options.preset}, stage {options.stage} of {options.pipeline_parallel} with {layers} layers"
            raise does_not_fit(what, short, most)

    def measure(self, stage: Stage, profile: Profile) -> None:
        """All arms in turn, and what communication and recompute are alone."""
        bench, options = self.bench, self.options
        static_bytes = 0 if options.memory_gib is not None else stage.static_bytes
        for arm in ARMS:
            table = needed(profile, arm, options.stage, layers=bench.layers, in_flight=stage.in_flight)
            # Weights and gradients are there already, and not free.
            short = shortage(table, room_bytes(options, self.device) + static_bytes * (self.device.type == "cpu"))
            if short:
                bench.refused[arm] = short
            else:
                bench.arms[arm] = Samples()
        if not bench.arms:
            in_flight = stage.in_flight
            most = most_layers(
                lambda n: any(not self.short(profile, arm, layers=n, in_flight=in_flight) for arm in ARMS), bench.layers
            )
            what = f"{options.preset}, stage {options.stage}: {in_flight} microbatches in flight, in every arm"
            raise does_not_fit(what, min(bench.refused.values(), key=len), most)
        for turn in range(options.rounds):
            names = list(bench.arms)
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                run_turn(
                    name, stage, self.collectives, self.clock, bench.arms[name],
                    iterations=options.iterations, meter=self.meter,
                )  # fmt: skip
        self._measure_alone(stage, profile)
        if self.device.type == "cuda":
            for samples in bench.arms.values():
                samples.peak_bytes -= self.link.scratch_bytes
                samples.before_bytes -= self.link.scratch_bytes

    def _measure_alone(self, stage: Stage, profile: Profile) -> None:
        if without_optimizer_bytes(
            needed(profile, ON_DEMAND, self.options.stage, layers=self.bench.layers, in_flight=1)
        ) > room_bytes(self.options, self.device):
            self.bench.alone_reason = "one microbatch does not fit"
            return
        rounds = self.options.iterations * self.options.rounds
        self.bench.alone = measure_alone(stage, self.collectives, self.link, self.clock, rounds=rounds)


def _compose(bench: Bench, profile: Profile) -> None:
    options = bench.options
    split = even_split(bench.layers * options.pipeline_parallel, options.pipeline_parallel)
    measured = for_split(profile, split)
    for arm in ARMS:
        bench.composed[arm] = compose(profile, arm, measured, options.stage)
