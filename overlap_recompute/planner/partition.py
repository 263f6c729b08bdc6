"""How many layers each stage holds, when each stage is priced with its own best plan.

The closed form of `contiguous.py` ranks all splits exactly; the simulator then decides among the best of them and their
neighbours, because a real schedule's warm-up and cool-down are not in the closed form.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from overlap_recompute.plan.actions import Actions
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.profile import EndCost, Pass, Profile
from overlap_recompute.plan.split import Split
from overlap_recompute.planner.build import build_stage_problem
from overlap_recompute.planner.contiguous import best_counts, greedy_counts, iteration_us
from overlap_recompute.planner.infeasible import InfeasibleError
from overlap_recompute.planner.plan import make_plan
from overlap_recompute.planner.solve import Memory, Search, solve_stage, window_kinds_of
from overlap_recompute.schedules import pipeline_schedule

CANDIDATES = 4
"""Splits by the closed form that are simulated; the even one is as well."""
MOST_SIMULATIONS, STAGE_SIMULATIONS = 24, 64
"""Of candidates and their neighbours together: so many, and so many divided by the stages: in a longer pipeline a
simulation takes longer and one layer matters less."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A split and the time of an iteration with it."""

    split: Split
    iteration_us: float
    """Simulated."""
    simulated: int
    """Splits that were."""


def best_split(
    profile: Profile,
    budget_bytes: int,
    *,
    stages: int | None = None,
    chunks: int | None = None,
    microbatches: int | None = None,
    planner: str = "heu",
) -> Split:
    """The split of `partition`."""
    return partition(
        profile, budget_bytes, stages=stages, chunks=chunks, microbatches=microbatches, planner=planner
    ).split


def partition(
    profile: Profile,
    budget_bytes: int,
    *,
    stages: int | None = None,
    chunks: int | None = None,
    microbatches: int | None = None,
    planner: str = "heu",
) -> Partition:
    """Search over all contiguous splits of the layers, embedding and head at the ends.

    The first and the last stage may hold no layer: the embedding or the head alone.

    Args:
        profile: of the model.
        budget_bytes: memory of one rank.
        stages: pipeline-parallel size; None: the profile's.
        chunks: model chunks of a stage; None: the profile's.
        microbatches: of an iteration; None: the profile's.
        planner: whose plan prices a stage.

    Raises:
        InfeasibleError: no split fits into the memory.
        ConfigError: fewer layers than stages can share.
    """
    pricer = Pricer(profile, budget_bytes, stages, chunks, microbatches, planner)
    simulator = _Simulations(pricer)
    limit_us = pricer.limit_us()
    found = best_counts(
        len(profile.layers),
        pricer.stages,
        pricer.microbatches,
        pricer.stage_us,
        may_be_empty=lambda stage: pricer.chunks == 1 and stage in (0, pricer.stages - 1) and pricer.stages > 1,
        keep=CANDIDATES,
        limit_us=lambda stage: limit_us,
        least_time=pricer.work_us,
    )
    if not found:
        # Planning the most even split says which stage is short, and by how much.
        make_plan(profile, planner=planner, budget_bytes=budget_bytes, split=pricer.split_of(pricer.even_counts()))
        raise ConfigError("layers that cannot be split", "a layer for each virtual stage", "choose fewer stages")
    counts = dict.fromkeys((*(each.counts for each in found), pricer.even_counts()))
    best = simulator.best(pricer.split_of(each) for each in counts)
    best = simulator.improve(best)
    return Partition(split=best, iteration_us=simulator.times_us[best], simulated=len(simulator.times_us))


def greedy_split(profile: Profile, budget_bytes: int, *, planner: str = "heu") -> Split:
    """The paper's rule (Chen et al., arXiv 2406.08756): from the even split, move layers from the slowest stage to the
    fastest one; a baseline."""
    pricer = Pricer(profile, budget_bytes, None, None, None, planner)
    counts = greedy_counts(pricer.even_counts(), pricer.stage_us, lambda stage: False)
    return pricer.split_of(counts)


class Pricer:
    """Times of stages with their own best plan; equal stages are priced once."""

    def __init__(
        self,
        profile: Profile,
        budget_bytes: int,
        stages: int | None,
        chunks: int | None,
        microbatches: int | None,
        planner: str,
    ) -> None:
        layout = profile.layout
        self.profile, self.budget_bytes, self.planner = profile, budget_bytes, planner
        self.stages = stages or len(layout.split)
        self.chunks = chunks or layout.chunks
        self.microbatches = microbatches or layout.microbatches
        self._layers = len(profile.layers)
        self._rows: tuple[Actions, ...] = pipeline_schedule(self.stages, self.chunks, self._enough_microbatches())
        self._passes_us = tuple(_steps_us(kind.forward, kind.backward) for kind in profile.kinds)
        self._known: dict[object, float | None] = {}
        self.memory = Memory()

    def limit_us(self) -> float:
        """No stage of a split that is faster than the even one takes longer, by the closed form."""
        counts = self.even_counts()
        firsts = [sum(counts[:stage]) for stage in range(self.stages)]
        places = list(zip(range(self.stages), firsts, counts, strict=True))
        times = [self.stage_us(*place) for place in places]
        known = [time_us for time_us in times if time_us is not None]
        if len(known) < len(times) or self.microbatches == 1:
            return float("inf")
        least_sum_us = sum(self.work_us(*place) for place in places)
        limit_us = (iteration_us(known, self.microbatches) - least_sum_us) / (self.microbatches - 1)
        return limit_us * (1 + _ROUNDING)

    def stage_us(self, stage: int, first: int, count: int) -> float | None:
        """Forward, backward and exposed recompute of one microbatch; None where nothing fits."""
        key = (stage, self.profile.layers[first : first + count], self._layers - first - count == 0)
        if key not in self._known:
            self._known[key] = self._price(stage, first, count)
        return self._known[key]

    def even_counts(self) -> tuple[int, ...]:
        """Layers of each stage, as even as can be."""
        each, rest = divmod(self._layers, self.stages)
        return tuple(each + (stage < rest) for stage in range(self.stages))

    def split_of(self, counts: tuple[int, ...]) -> Split:
        """The split with so many layers on each stage, spread evenly over its chunks."""
        return tuple(tuple(_spread(count, self.chunks)) for count in counts)

    def _price(self, stage: int, first: int, count: int) -> float | None:
        counts = [0] * self.stages
        counts[stage] = count
        if stage > 0:
            counts[0] += first
        if stage < self.stages - 1:
            counts[-1] += self._layers - first - count
        problem = build_stage_problem(
            self.profile,
            self.split_of(tuple(counts)),
            stage,
            self.microbatches,
            self.budget_bytes,
            window_kinds=window_kinds_of(self.planner),
            row=self._rows[stage],
        )
        try:
            solution = solve_stage(problem, self.planner, memory=self.memory, search=Search(moves=0))
        except InfeasibleError:
            return None
        return self.work_us(stage, first, count) + solution.exposed_us

    def work_us(self, stage: int, first: int, count: int) -> float:
        """Forward and backward of one microbatch, nothing recomputed."""
        work_us = sum(self._passes_us[kind] for kind in self.profile.layers[first : first + count])
        ends: Iterable[EndCost] = (
            *((self.profile.embedding,) if stage == 0 else ()),
            *((self.profile.head,) if stage == self.stages - 1 else ()),
        )
        return work_us + sum(_steps_us(end.forward, end.backward) for end in ends)

    def _enough_microbatches(self) -> int:
        """So many show the steady state and the most in flight; a multiple of the stages where chunks ask for one."""
        enough = 4 * self.stages
        if self.microbatches <= enough:
            return self.microbatches
        return enough


class _Simulations:
    """Iteration times of splits, each simulated once."""

    def __init__(self, pricer: "Pricer") -> None:
        self.times_us: dict[Split, float] = {}
        self._pricer = pricer
        self._most = min(MOST_SIMULATIONS, max(CANDIDATES, STAGE_SIMULATIONS // pricer.stages))

    def best(self, splits: Iterable[Split]) -> Split:
        """The fastest of some."""
        return min(splits, key=self.time_us)

    def time_us(self, split: Split) -> float:
        """Of an iteration; infinite where nothing fits."""
        if split not in self.times_us:
            try:
                self.times_us[split] = make_plan(
                    self._pricer.profile,
                    planner=self._pricer.planner,
                    budget_bytes=self._pricer.budget_bytes,
                    split=split,
                    microbatches=self._pricer.microbatches,
                    memory=self._pricer.memory,
                    by_need=False,
                ).predicted_iteration_us
            except InfeasibleError:
                self.times_us[split] = float("inf")
        return self.times_us[split]

    def improve(self, split: Split) -> Split:
        """Move single layers between virtual stages as long as that helps."""
        best_us = self.time_us(split)
        improved = True
        while improved and len(self.times_us) < self._most:
            improved = False
            for neighbour in _neighbours(split):
                if len(self.times_us) >= self._most:
                    break
                if self.time_us(neighbour) < best_us:
                    split, best_us, improved = neighbour, self.time_us(neighbour), True
                    break
        return split


def _neighbours(split: Split) -> Iterator[Split]:
    """Splits with one layer moved between neighbouring stages, or between the outer ones."""
    stages, chunks = len(split), len(split[0])
    pairs = [(stage, stage + 1) for stage in range(stages - 1)] + ([(0, stages - 1)] if stages > 2 else [])
    for chunk in range(chunks):
        for one, other in pairs:
            for giver, taker in ((one, other), (other, one)):
                least = 0 if chunks == 1 and giver in (0, stages - 1) else 1
                if split[giver][chunk] > least:
                    yield tuple(
                        tuple(
                            n + ((stage, index) == (taker, chunk)) - ((stage, index) == (giver, chunk))
                            for index, n in enumerate(row)
                        )
                        for stage, row in enumerate(split)
                    )


def _spread(count: int, chunks: int) -> Iterator[int]:
    each, rest = divmod(count, chunks)
    yield from (each + (chunk < rest) for chunk in range(chunks))


def _steps_us(*passes: Pass) -> float:
    return sum(step.duration_us for steps in passes for step in steps)
