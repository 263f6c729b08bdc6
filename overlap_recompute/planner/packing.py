"""Which replay goes into which window when it is known what each layer drops: a beam search backwards in time.

NOTE [ how far windows can go ]
Windows are looked at from the last to the first. Behind window w, R is the replay time that is not placed yet although
its deadline is past w, and a[v] the time whose deadline is window v. If replays could be split, what
is exposed in the end would be

    max(E[w], R + N[w])     N[w] = sum over v <= w of a[v] - l[v - 1],   E[w] = max over v <= w of N[v], at least 0

(a queue that is served backwards). Units cannot be split: a window that is left unfilled costs when R + N[w] exceeds
E[w], one that is overfilled costs its overrun. A set of units for a window is chosen by the sum of both, which is exact
up to what later windows lose; `width` such partial assignments are carried along. The sum at the very start is a lower
bound for any assignment: a search that reaches it ends with an optimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from overlap_recompute.planner.assignment import SLACK_US, Assignment, Jobs, Packed

_MOST_PASSES = 4
_RESERVED = 2
"""Longest units for which room is left when a long window is filled up front."""


class _State(NamedTuple):
    estimate_us: float
    preference: float
    overrun_us: float
    left_us: float
    placed: int
    held: tuple[int, ...]
    trail: tuple[Any, ...]
    """(window, jobs as bits, trail before)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to look."""

    width: int
    """Partial assignments that are kept."""
    sums: int
    """Sets of units that are looked at for a window."""
    jobs: int
    """Units that are considered for a window."""


def fractional_exposed_us(jobs: Jobs, lengths: Sequence[float], first: int, stop: int) -> float:
    """What would be exposed if replays could be split and memory were no matter: a lower bound."""
    arrivals = _arrivals(jobs, first, stop)
    exposed_us = total_us = 0.0
    for window in range(first, stop):
        total_us += arrivals[window + 1 - first] - lengths[window]
        exposed_us = max(exposed_us, total_us)
    return exposed_us + arrivals[0]


def pack(
    jobs: Jobs,
    lengths: Sequence[float],
    first: int,
    stop: int,
    cap_bytes: int,
    effort: Effort,
    *,
    eager: bool = False,
    thrifty: bool = False,
) -> Packed:
    """Assign jobs to windows first .. stop - 1.

    Args:
        jobs: replays.
        lengths: of all windows.
        first: first window of the chunk.
        stop: one past the last.
        cap_bytes: most that may be prefetched at a time.
        effort: how hard to look.
        eager: fill each window as if none came before it; better where memory is short.
        thrifty: prefer what holds few bytes for a short time for what it hides, not what is needed latest.
    """
    arrivals = _arrivals(jobs, first, stop)
    sums, worst = [0.0], [0.0]
    for window in range(first, stop):
        sums.append(sums[-1] + arrivals[window + 1 - first] - lengths[window])
        worst.append(max(worst[-1], sums[-1]))
    states = [_State(0.0, 0.0, 0.0, 0.0, 0, (0,) * (stop - first), ())]
    for window in range(stop - 1, first - 1, -1):
        at = window - first
        come_us, floor = arrivals[at + 1], -1e30 if eager else worst[at]
        eligible = _eligible(jobs, window, thrifty)
        following: dict[tuple[int, tuple[int, ...]], _State] = {}
        for state in states:
            left_us = state.left_us + come_us
            if left_us <= SLACK_US:
                following[state.placed, state.held] = state._replace(left_us=left_us)
                continue
            for chosen, filled_us, held in _sets(
                jobs, state, eligible, window, first, lengths[window], cap_bytes, effort
            ):
                overrun_us = state.overrun_us + max(0.0, filled_us - lengths[window])
                rest_us = left_us - filled_us
                estimate_us = overrun_us + max(floor, rest_us + sums[at])
                new = _State(
                    round(estimate_us, 6),
                    state.preference - filled_us * window if filled_us <= lengths[window] else state.preference,
                    overrun_us,
                    rest_us,
                    state.placed | chosen,
                    held,
                    (window, chosen, state.trail) if chosen else state.trail,
                )
                old = following.get((new.placed, held))
                if old is None or new[:2] < old[:2]:
                    following[new.placed, held] = new
        states = sorted(following.values())[: effort.width]
    best = min(states, key=lambda state: state.overrun_us + state.left_us)
    return _finish(jobs, lengths, first, stop, best, cap_bytes)


def _eligible(jobs: Jobs, window: int, thrifty: bool) -> list[int]:
    """Jobs that may be in a window, the one to take first in front."""
    found = [job for job, deadline in enumerate(jobs.deadlines) if deadline > window]
    if thrifty:
        found.sort(key=lambda job: jobs.nbytes[job] * (jobs.needs[job] - window) / max(jobs.times_us[job], 1e-3))
    return found


def _arrivals(jobs: Jobs, first: int, stop: int) -> list[float]:
    arrivals = [0.0] * (stop - first + 1)
    for deadline, time_us in zip(jobs.deadlines, jobs.times_us, strict=True):
        arrivals[deadline - first] += time_us
    return arrivals


def _sets(
    jobs: Jobs,
    state: _State,
    eligible: Sequence[int],
    window: int,
    first: int,
    length_us: float,
    cap_bytes: int,
    effort: Effort,
) -> list[tuple[int, float, tuple[int, ...]]]:
    """Sets of jobs that this window may take: (jobs as bits, their time, bytes held afterwards)."""
    base = _base(jobs, state, eligible, window, first, length_us, cap_bytes)
    found: list[tuple[int, float, tuple[int, ...]]] = [base]
    seen = {0.0, round(base[1], 3)}
    tried, start, placed = 0, window - first, state.placed
    for job in eligible:
        if (placed | base[0]) >> job & 1:
            continue
        readers = jobs.readers[job] & ~placed
        time_us, nbytes, end = jobs.times_us[job], jobs.nbytes[job], jobs.needs[job] - first
        if readers and not any(readers & ~chosen == 0 for chosen, _, _ in found):
            continue
        for chosen, filled_us, held in found[:]:
            if filled_us >= length_us or readers & ~chosen:
                continue
            total_us = filled_us + time_us
            key = round(total_us, 3)
            if key in seen or max(held[start:end]) + nbytes > cap_bytes:
                continue
            seen.add(key)
            more = tuple([have + nbytes for have in held[start:end]])
            found.append((chosen | 1 << job, total_us, held[:start] + more + held[end:]))
        tried += 1
        if tried >= effort.jobs or len(found) >= effort.sums:
            break
    if base[0]:
        found.append((0, 0.0, state.held))
    return found


def _base(
    jobs: Jobs,
    state: _State,
    eligible: Sequence[int],
    window: int,
    first: int,
    length_us: float,
    cap_bytes: int,
) -> tuple[int, float, tuple[int, ...]]:
    """What a long window takes without second thoughts: what is needed latest, up to the room for a few units more."""
    chosen, filled_us, held, start = 0, 0.0, state.held, window - first
    left_us = length_us - _RESERVED * max((jobs.times_us[job] for job in eligible), default=0.0)
    for job in eligible:
        if state.placed >> job & 1:
            continue
        if filled_us + jobs.times_us[job] > left_us:
            break
        end = jobs.needs[job] - first
        if jobs.readers[job] & ~(state.placed | chosen) or max(held[start:end]) + jobs.nbytes[job] > cap_bytes:
            continue
        more = tuple([have + jobs.nbytes[job] for have in held[start:end]])
        chosen, filled_us, held = chosen | 1 << job, filled_us + jobs.times_us[job], held[:start] + more + held[end:]
    return chosen, filled_us, held


def _finish(jobs: Jobs, lengths: Sequence[float], first: int, stop: int, state: _State, cap_bytes: int) -> Packed:
    """The windows of a state, mended and filled up."""
    plan = Assignment(jobs, lengths, first, stop, cap_bytes)
    trail = state.trail
    while trail:
        window, chosen, trail = trail
        for job in range(len(jobs.times_us)):
            if chosen >> job & 1:
                plan.put(job, window)
    plan.complete()
    plan.mend(_MOST_PASSES)
    return plan.result()
