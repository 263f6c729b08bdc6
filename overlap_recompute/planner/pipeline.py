"""All stages of a pipeline: each is solved by itself, and those that wait for a slower one are solved with that wait.

NOTE [ what a stage may do while it waits ]
A stage that works W and exposes E waits T - W - E at a pace T (`planner/waits.py`). Replays in the wait take no time
from anybody as long as the stage stays within T:

    W + (replays in the wait) + E <= T        E without what outlives the wait

1. A stage that exposes nothing without its wait needs none.
2. The others are solved with T - W, the longest wait there can be. If the solution stays within T it is taken.
3. Else they are solved with T - W - E of the solution without the wait. What this one exposes is no more than E, so it
   stays within T.
4. The last stage has no replays to do while it waits. With several chunks (virtual pipeline) it is not known which of
   them waits: such waits are filled at run time; `planner/seen_waits.py` finds choices that suit them.
5. A wait that is longer than its replays changes nothing: in the end each wait has the length that follows from the
   times of all stages, and nothing outlives it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from overlap_recompute.plan.plan_file import FORWARD_WAIT, PIPELINE_WINDOW
from overlap_recompute.plan.profile import EndCost, Pass, Profile
from overlap_recompute.plan.split import Split, layers_of
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.planner.baselines import COMMON
from overlap_recompute.planner.build import Waits, build_stage_problem
from overlap_recompute.planner.infeasible import InfeasibleError
from overlap_recompute.planner.problem import StageProblem, StageSolution
from overlap_recompute.planner.solve import (
    Memory,
    Search,
    solve_common,
    solve_stage,
    window_kinds_of,
    worst_infeasible,
)
from overlap_recompute.planner.waits import Pace, Wait, pace_of, transfer_us, waits_of
from overlap_recompute.schedules import pipeline_schedule

Solved = tuple[StageProblem, StageSolution]
SCOUTS = {"opt": "mix"}
"""Planners that say which stage is the slowest in place of a slow one."""
_LEAST_US = 1e-6


def work_us(profile: Profile, split: Split, stage: int) -> tuple[float, float]:
    """Forward and backward time of a microbatch on a stage, windows included, nothing recomputed."""
    kinds = [profile.kind_of(layer) for layers in layers_of(split)[stage] for layer in layers]
    parts: list[tuple[Pass, Pass]] = [(kind.forward, kind.backward) for kind in kinds]
    ends: tuple[EndCost, ...] = (profile.embedding,) * (stage == 0) + (profile.head,) * (stage == len(split) - 1)
    parts += [(end.forward, end.backward) for end in ends]
    return (
        sum(step.duration_us for forward, _ in parts for step in forward),
        sum(step.duration_us for _, backward in parts for step in backward),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a stage may take without slowing the pipeline down."""

    pace_us: float
    """T of the NOTE."""
    work_us: float
    """W."""
    before_forward: bool

    def wait(self, exposed_us: float) -> Wait:
        """With so much exposed."""
        length_us = self.pace_us - self.work_us - exposed_us
        return Wait(length_us=max(0.0, length_us), before_forward=self.before_forward)

    def holds(self, problem: StageProblem, found: StageSolution) -> bool:
        """Whether the stage stays within the pace."""
        return self.work_us + sum(_split_time(problem, found)) <= self.pace_us + _LEAST_US


class Pipeline:
    """What is planned, and the problems of its stages.

    Args:
        profile: costs and sizes.
        split: layers over stages and chunks.
        microbatches: of an iteration.
        budget_bytes: memory of one rank.
        planner: whose windows are filled.
    """

    __slots__ = ("profile", "split", "microbatches", "budget_bytes", "planner", "_rows")

    def __init__(self, profile: Profile, split: Split, microbatches: int, budget_bytes: int, planner: str) -> None:
        self.profile, self.split, self.microbatches = profile, split, microbatches
        self.budget_bytes, self.planner = budget_bytes, planner
        self._rows = pipeline_schedule(len(split), len(split[0]), microbatches)

    def problem(self, stage: int, wait: Wait | None = None, waits: Waits | None = None) -> StageProblem:
        """Of one stage, with its wait as a window, or with one for each chunk."""
        return build_stage_problem(
            self.profile,
            self.split,
            stage,
            self.microbatches,
            self.budget_bytes,
            pp_wait_us=0.0 if wait is None else wait.length_us,
            before_forward=wait is not None and wait.before_forward,
            waits=waits,
            window_kinds=window_kinds_of(self.planner),
            row=self._rows[stage],
        )

    def problems(self) -> list[StageProblem]:
        """Of all stages, without waits."""
        return [self.problem(stage) for stage in range(len(self.split))]

    @property
    def transfer_us(self) -> float:
        """Of a tensor between stages."""
        return transfer_us(self.profile, self.split)

    def work_us(self, stage: int) -> float:
        """Of a microbatch, nothing recomputed."""
        return sum(work_us(self.profile, self.split, stage))


def solve_apart(pipeline: Pipeline, planner: str, memory: Memory, search: Search) -> list[Solved]:
    """Every stage as if it never waited.

    Raises:
        InfeasibleError: for the stage that lacks most.
        ConfigError, SolverError: as `solve_stage`.
    """
    problems = pipeline.problems()
    if planner in COMMON:
        return list(zip(problems, solve_common(problems, planner, memory), strict=True))
    try:
        return [(problem, solve(problem, planner, memory, search)) for problem in problems]
    except InfeasibleError as error:
        raise worst_infeasible(error, problems, memory) from None


def solve(problem: StageProblem, planner: str, memory: Memory, search: Search) -> StageSolution:
    """One stage; where the search can be stopped, Ctrl-C ends it and all that follow, whenever it comes.

    Raises:
        KeyboardInterrupt: the second one.
        InfeasibleError, ConfigError, SolverError: as `solve_stage`.
    """
    try:
        return solve_stage(problem, planner, memory=memory, search=search)
    except KeyboardInterrupt:
        if search.stop is None or search.stop.is_set():
            raise
        search.stop.set()
    return solve_stage(problem, planner, memory=memory, search=search)


def solve_pipeline(pipeline: Pipeline, memory: Memory, search: Search) -> list[list[Solved]]:
    """All stages, those with exposed recompute and a wait with that wait; see the NOTE.

    Returns:
        Ways to solve them, the one to be expected first: where a round trip sets the pace also with the waits that the
        slowest stage makes, and as if no stage ever waited. With few microbatches one of these may be faster. `opt`
        searches once: which stage is the slowest follows from what `mix` finds.

    Raises:
        InfeasibleError: for the stage that lacks most.
        ConfigError, SolverError: as `solve_stage`.
    """
    planner, scout = pipeline.planner, SCOUTS.get(pipeline.planner, pipeline.planner)
    apart = solve_apart(pipeline, scout, memory, search)
    if len(apart) == 1 or len(pipeline.split[0]) > 1 or WindowKind.PP_WAIT.value not in window_kinds_of(planner):
        return [apart if scout == planner else solve_apart(pipeline, planner, memory, search)]
    work = [pipeline.work_us(stage) for stage in range(len(apart))]
    slowest_us = max(work_us + found.exposed_us for work_us, (_, found) in zip(work, apart, strict=True))
    pace = pace_of(work, pipeline.transfer_us)
    trip = pace if pace.pace_us > slowest_us else None
    exposing = sum(found.exposed_us > _LEAST_US for _, found in apart)
    search = replace(search, limit_s=search.limit_s * len(apart) / max(1, exposing))
    ways = [_solve_with(trip, apart, work, pipeline, memory, search)]
    if scout == planner and trip is not None:
        ways.append(_solve_with(None, apart, work, pipeline, memory, search))
    return [*ways, apart] if scout == planner else ways


def _solve_with(
    trip: Pace | None, apart: list[Solved], work: list[float], pipeline: Pipeline, memory: Memory, search: Search
) -> list[Solved]:
    """At the pace of a round trip, or of the slowest stage."""
    solved, slowest = list(apart), -1
    if trip is None:
        times = [work_us + found.exposed_us for work_us, (_, found) in zip(work, apart, strict=True)]
        slowest = max(range(len(times)), key=times.__getitem__)
        solved[slowest] = apart[slowest][0], solve(apart[slowest][0], pipeline.planner, memory, search)
        trip = Pace(work[slowest] + solved[slowest][1].exposed_us, slowest)
    for stage, (_, found) in enumerate(apart):
        if stage != slowest and found.exposed_us > _LEAST_US:
            room = Room(pace_us=trip.pace_us, work_us=work[stage], before_forward=stage > trip.leader)
            solved[stage] = _solve_in(room, pipeline, stage, memory, search)
    return settled(solved, work, pipeline.transfer_us)


def _solve_in(room: Room, pipeline: Pipeline, stage: int, memory: Memory, search: Search) -> Solved:
    """A stage that may wait: rules 2 and 3 of the NOTE."""
    planner, alone = pipeline.planner, pipeline.problem(stage)
    problem = pipeline.problem(stage, room.wait(0.0))
    if not waits_in(problem):
        return alone, solve(alone, planner, memory, search)
    found = solve(problem, planner, memory, replace(search, limit_s=search.limit_s / 2))
    if room.holds(problem, found):
        return problem, found
    search = replace(search, limit_s=search.limit_s / 4)
    best = solve(alone, planner, memory, search)
    problem = pipeline.problem(stage, room.wait(best.exposed_us))
    if waits_in(problem):
        found = solve(problem, planner, memory, search)
        if room.holds(problem, found) and found.exposed_us < best.exposed_us:
            return problem, found
    return alone, best


def waits_in(problem: StageProblem) -> list[int]:
    """Windows of a problem that are waits for other stages."""
    return [index for index, window in enumerate(problem.windows) if window.name in (PIPELINE_WINDOW, FORWARD_WAIT)]


def _split_time(problem: StageProblem, found: StageSolution) -> tuple[float, float]:
    """Replays in waits for other stages, and what is exposed besides what outlives those."""
    loads_us = _loads(problem, found)
    waits = waits_in(problem)
    over_us = sum(max(0.0, loads_us.get(index, 0.0) - problem.windows[index].length_us) for index in waits)
    return sum(loads_us.get(index, 0.0) for index in waits), max(0.0, found.exposed_us - over_us)


def _loads(problem: StageProblem, found: StageSolution) -> Mapping[int, float]:
    loads_us: dict[int, float] = {}
    for fill in found.fills:
        unit = problem.kinds[problem.layers[fill.layer].kind].units[fill.unit]
        loads_us[fill.window] = loads_us.get(fill.window, 0.0) + unit.forward_us
    return loads_us


def settled(solved: Sequence[Solved], work: Sequence[float], transfer_us: float) -> list[Solved]:
    """Waits as long as they come out, and what is exposed then."""
    parts = [_split_time(*each) for each in solved]
    times = [work_us + outside_us for work_us, (_, outside_us) in zip(work, parts, strict=True)]
    result = []
    for (problem, found), (_, outside_us), wait in zip(solved, parts, waits_of(times, transfer_us), strict=True):
        places = waits_in(problem)
        windows = tuple(
            replace(window, length_us=wait.length_us) if index in places else window
            for index, window in enumerate(problem.windows)
        )
        total_us = found.exposed_us + found.hidden_us
        settled = replace(
            found,
            exposed_us=outside_us,
            hidden_us=total_us - outside_us,
            bound_us=min(found.bound_us, outside_us),
        )
        result.append((replace(problem, windows=windows), settled))
    return result
