"""What the study's rows say: the best of each arm, gains, their parts, and why there is none."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tools.study_lib.arms import OURS, STOCK_BLOCK
from tools.study_lib.matrix import Place, Row

NONE, STOCK = "none", "stock-full"
MEGATRON = (STOCK, STOCK_BLOCK, "selective")
"""Megatron-Core's own settings. Selective recompute repeats no collective here."""
EXISTING = (*MEGATRON, "uniform", "block", "full", "checkmate", "adapipe", "adapipe+partition")
"""Recomputation as it is: on demand."""
STEPS = (
    ("fewer replays", STOCK, "full"),
    ("choice of what is kept", "full", "adapipe"),
    ("early", "adapipe", "early"),
    ("windows", "early", "mix"),
    ("partition", "mix", OURS),
)
"""(part, arm without it, arm with it): each step switches one part on, in this order."""
PAPER_GAIN = 1.37
LEAST_GAIN = 1.01
"""Below it there is none."""
LITTLE = 0.01

Found = Mapping[str, Row]
"""By arm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is compared: a place in one of the study's parts, with a memory."""

    place: Place
    part: str
    share: float
    sequence: int


def cases(rows: Iterable[Row], part: str) -> dict[Case, dict[str, Row]]:
    """The fastest row of each arm, which may have its own micro-batch, in every case of a part."""
    found: dict[Case, dict[str, Row]] = {}
    for row in rows:
        if row.part == part:
            case = Case(place=row.place, part=part, share=row.share, sequence=row.sequence)
            best = found.setdefault(case, {})
            if row.arm not in best or row.tokens_per_s > best[row.arm].tokens_per_s:
                best[row.arm] = row
    return found


def best_of(found: Found, arms: Sequence[str]) -> Row | None:
    """The fastest of some arms; None if none of them fits."""
    return max((found[arm] for arm in arms if arm in found), key=lambda row: row.tokens_per_s, default=None)


def gain(found: Found, arms: Sequence[str] = EXISTING) -> float | None:
    """Throughput of ours over that of the best of some arms; None where one side does not fit."""
    other = best_of(found, arms)
    return found[OURS].tokens_per_s / other.tokens_per_s if OURS in found and other is not None else None


def at_batch(rows: Iterable[Row], case: Case, micro_batch: int) -> dict[str, Row]:
    """All arms of a case at one micro-batch: the steps of a gain change one thing each."""
    return {
        row.arm: row
        for row in rows
        if (row.part, row.place, row.share, row.sequence, row.micro_batch)
        == (case.part, case.place, case.share, case.sequence, micro_batch)
    }


def steps_of(rows: Sequence[Row], case: Case, found: Found) -> tuple[float, ...] | None:
    """`steps` at the micro-batch that is fastest for ours."""
    return steps(at_batch(rows, case, found[OURS].micro_batch)) if OURS in found else None


def steps(found: Found) -> tuple[float, ...] | None:
    """What each of `STEPS` adds, in parts of stock full recompute's throughput: they sum to the gain less 1."""
    if any(arm not in found for _, *pair in STEPS for arm in pair):
        return None
    stock = found[STOCK].tokens_per_s
    return tuple((found[after].tokens_per_s - found[before].tokens_per_s) / stock for _, before, after in STEPS)


def mean_steps(all_steps: Iterable[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    """The mean of each step; unlike medians, means sum to the mean of the whole."""
    known = [each for each in all_steps if each is not None]
    return tuple(statistics.fmean(column) for column in zip(*known, strict=True)) if known else None


def why_none(found: Found) -> str:
    """Why ours gains less than `LEAST_GAIN` over what exists; by the figures of the case."""
    best, ours = best_of(found, EXISTING), found.get(OURS)
    if ours is None:
        return "ours does not fit"
    if best is None:
        return "nothing that exists fits"
    if NONE in found and found[NONE].tokens_per_s >= best.tokens_per_s * (1 - LITTLE / 10):
        return "no recompute is needed: keeping everything fits and is fastest"
    if best.exposed_share < LITTLE:
        return "little is left to hide: the best existing arm exposes less than 1 % of the iteration"
    recomputed = ours.hidden_share + ours.exposed_share
    if recomputed and ours.hidden_share < 0.25 * recomputed:
        return "few windows to hide in: on these links compute covers most of the communication"
    return "what exists recomputes cheaper units and exposes about as little"
