"""Random stage problems, and an exhaustive search for small ones."""

import dataclasses
import itertools
import random

from overlap_recompute.plan.profile import LayerKind, Profile
from overlap_recompute.planner.build import build_stage_problem
from overlap_recompute.planner.problem import ON_DEMAND, StageProblem, memory_of
from overlap_recompute.planner.verify import replayed_units
from tests.unit.planner.profiles import profile_of, random_kind


def random_problem(seed: int, *, most_layers: int = 3, most_units: int = 3, chunks: int = 1) -> StageProblem:
    """One stage of a pipeline of one to three, with a budget between too little and more than is needed."""
    rng = random.Random(seed)
    layers = rng.randint(1, most_layers)
    kinds = tuple(
        random_kind(rng, rng.randint(1, most_units), name=f"k{number}", windows=rng.choice((0.2, 0.6, 1.0, 2.0)))
        for number in range(rng.choice((1, 1, 2)))
    )
    stages = rng.choice((1, 2, 3)) if chunks == 1 else 2
    stage = rng.randrange(stages)
    split = tuple((layers if number == stage else 1,) * chunks for number in range(stages))
    total = sum(map(sum, split))
    profile: Profile = profile_of(
        kinds, tuple(rng.randrange(len(kinds)) for _ in range(total)), split, 8, end_bytes=rng.randrange(100)
    )
    wait_us = rng.choice((0.0, 0.0, 50.0, 200.0))
    problem = build_stage_problem(profile, split, stage, 8, 10**9, pp_wait_us=wait_us)
    none = sum(memory_of(problem, [frozenset()] * len(problem.layers)))
    full = sum(memory_of(problem, everything(problem)))
    return dataclasses.replace(problem, budget_bytes=int(full + (none - full) * rng.uniform(-0.1, 1.05)))


def everything(problem: StageProblem) -> list[frozenset[str]]:
    """For each layer all units that may be dropped."""
    kinds = [problem.kinds[layer.kind] for layer in problem.layers]
    return [frozenset(unit.name for unit in kind.units if unit.refusal is None) for kind in kinds]


def brute_force_us(problem: StageProblem) -> float | None:
    """The least exposed time over all dropped sets and all assignments; None if nothing fits."""
    best: float | None = None
    sets = [
        [frozenset(names) for size in range(len(units) + 1) for names in itertools.combinations(sorted(units), size)]
        for units in everything(problem)
    ]
    for dropped in itertools.product(*sets):
        room_bytes = problem.budget_bytes - sum(memory_of(problem, dropped))
        if room_bytes >= 0:
            found = _assign(problem, dropped, room_bytes, best)
            best = found if best is None or found < best else best
    return best


def _assign(problem: StageProblem, dropped: tuple[frozenset[str], ...], room_bytes: int, below: float | None) -> float:
    """The least exposed time for given dropped sets; stops early where it cannot get below `below`."""
    jobs = []
    for index, (layer, names) in enumerate(zip(problem.layers, dropped, strict=True)):
        kind = problem.kinds[layer.kind]
        replayed = replayed_units(kind, names)
        for number, unit in enumerate(kind.units):
            if unit.name in replayed:
                size = sum(r.nbytes for r in kind.storages if r.maker == unit.name and r.is_brought_back(names))
                sources = [other for other in unit.reads if other in replayed]
                due = min(layer.deadlines[at] for at in _readers(kind, number, replayed))
                jobs.append((index, unit, layer.first_window, layer.deadlines[number], size, sources, due))
    lengths = [window.length_us for window in problem.windows]
    loads, held, place = [0.0] * len(lengths), [0] * len(lengths), {}
    total_us = sum(job[1].forward_us for job in jobs)
    best = [float("inf") if below is None else below]

    def descend(at: int, hidden_us: float, left_us: float) -> None:
        if total_us - hidden_us - left_us >= best[0] - 1e-9:
            return
        if at == len(jobs):
            best[0] = total_us - hidden_us
            return
        index, unit, first, deadline, size, sources, due = jobs[at]
        before = [place[index, source] for source in sources]
        low = max([first, *before])
        windows = [] if ON_DEMAND in before else range(low, due)
        for window in windows:
            if any(held[w] + size > room_bytes for w in range(window, deadline)):
                continue
            gain_us = max(0.0, min(unit.forward_us, lengths[window] - loads[window]))
            loads[window] += unit.forward_us
            for w in range(window, deadline):
                held[w] += size
            place[index, unit.name] = window
            descend(at + 1, hidden_us + gain_us, left_us - unit.forward_us)
            loads[window] -= unit.forward_us
            for w in range(window, deadline):
                held[w] -= size
        place[index, unit.name] = ON_DEMAND
        descend(at + 1, hidden_us, left_us - unit.forward_us)

    descend(0, 0.0, total_us)
    return best[0]


def _readers(kind: LayerKind, number: int, replayed: set[str]) -> set[int]:
    """The unit and all replayed ones that read it, directly or through others."""
    found = {number}
    for at in range(number + 1, len(kind.units)):  # readers come later in forward order
        if kind.units[at].name in replayed and any(kind.units[one].name in kind.units[at].reads for one in found):
            found.add(at)
    return found
