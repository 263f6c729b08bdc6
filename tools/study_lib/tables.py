"""The tables of the study's page."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from tools.study_lib.arms import ARMS, CHECKMATE, OURS
from tools.study_lib.figures import (
    EXISTING,
    LEAST_GAIN,
    LITTLE,
    MEGATRON,
    PAPER_GAIN,
    STEPS,
    STOCK,
    Case,
    Found,
    best_of,
    cases,
    gain,
    mean_steps,
    steps_of,
    why_none,
)
from tools.study_lib.matrix import BUDGET, CLUSTERS, DEVICE, SEQUENCE, SHARES, Row

ABSENT = "-"
Cases = Mapping[Case, Found]


def percent(value: float, digits: int = 0) -> str:
    """Of 1."""
    return f"{value * 100:.{digits}f} %"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Of a Markdown page."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *body]


def of_cluster(found: Cases, cluster: str) -> dict[Case, Found]:
    """The cases of one cluster."""
    return {case: best for case, best in found.items() if case.place.cluster == cluster}


def by_arm(found: Cases, *, with_sequence: bool = False) -> list[str]:
    """Throughput of every arm, each at the micro-batch that suits it best.

    Args:
        found: cases of one cluster, or of several with `with_sequence`.
        with_sequence: name cluster and tokens of a sequence too.
    """
    arms = [*ARMS, CHECKMATE]
    arms.sort(key=lambda arm: (arm == OURS, arm != CHECKMATE and arm in ("early", "heu", "mix")))
    arms = [arm for arm in arms if any(arm in best for best in found.values())]
    heads = ["model", "TP x PP", *arms, "over stock-full", "over Megatron", "over all"]
    rows = []
    for case, best in found.items():
        cells = [_speed_cell(best, arm, with_batch=not with_sequence) for arm in arms]
        gains = [_factor(gain(best, others)) for others in ((STOCK,), MEGATRON, EXISTING)]
        first = [case.place.cluster, f"{case.sequence}"] if with_sequence else []
        rows.append([*first, *_place_cells(case), *cells, *gains])
    return table(["cluster", "tokens", *heads] if with_sequence else heads, rows)


def _speed_cell(best: Found, arm: str, *, with_batch: bool) -> str:
    if arm not in best:
        return ABSENT
    return f"{best[arm].tokens_per_s / 1000:.2f}" + (f" @{best[arm].micro_batch}" if with_batch else "")


def _place_cells(case: Case) -> list[str]:
    return [case.place.model, f"{case.place.tensor_parallel} x {case.place.pipeline_parallel}"]


def _factor(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def over_memory(found: Cases) -> list[str]:
    """By cluster and memory: gains of ours, mean and most, and what is hidden."""
    rows = []
    for cluster in CLUSTERS:
        for share in SHARES:
            chosen = [best for case, best in of_cluster(found, cluster).items() if case.share == share and OURS in best]
            if chosen:
                rows.append([cluster, percent(share), f"{len(chosen)}", *_gain_cells(chosen)])
    names = ("stock-full", "Megatron", "all existing")
    heads = [f"over {name}: mean, most" for name in names]
    return table(["cluster", "memory", "cases", *heads, "mean recompute hidden / exposed, of the iteration"], rows)


def _gain_cells(chosen: Sequence[Found]) -> list[str]:
    cells = []
    for others in ((STOCK,), MEGATRON, EXISTING):
        gains = [value for best in chosen if (value := gain(best, others)) is not None]
        cells.append(f"{statistics.fmean(gains):.3f}, {max(gains):.3f}" if gains else ABSENT)
    hidden = statistics.fmean(best[OURS].hidden_share for best in chosen)
    exposed = statistics.fmean(best[OURS].exposed_share for best in chosen)
    return [*cells, f"{percent(hidden, 1)} / {percent(exposed, 1)}"]


def mean_parts(rows: Sequence[Row]) -> list[str]:
    """The additive decomposition, means by cluster and memory."""
    lines = []
    for part in (DEVICE, BUDGET, SEQUENCE):
        found = cases(rows, part)
        for cluster in CLUSTERS:
            chosen = of_cluster(found, cluster)
            for share in sorted({case.share for case in chosen}):
                known = [steps_of(rows, case, best) for case, best in chosen.items() if case.share == share]
                mean = mean_steps(known)
                count = sum(each is not None for each in known)
                if mean is not None:
                    lines.append([cluster, memory_name(part, share), f"{count}", *_points(mean)])
    return table(["cluster", "memory", "cases", *[name for name, _, _ in STEPS], "together"], lines)


def parts_by_place(rows: Sequence[Row], share: float) -> list[str]:
    """The additive decomposition of every place at one share of memory."""
    lines = []
    for case, best in cases(rows, BUDGET).items():
        found = steps_of(rows, case, best) if case.share == share else None
        if found is not None:
            lines.append([case.place.cluster, *_place_cells(case), f"{best[OURS].micro_batch}", *_points(found)])
    heads = ["cluster", "model", "TP x PP", "micro-batch", *[name for name, _, _ in STEPS], "together"]
    return table(heads, lines)


def memory_name(part: str, share: float) -> str:
    """For people."""
    return {DEVICE: "device", SEQUENCE: "device, long sequences"}.get(part, percent(share))


def _points(found: Sequence[float]) -> list[str]:
    return [f"{value:+.3f}" for value in found] + [f"{1 + sum(found):.3f}"]


def reached(rows: Sequence[Row]) -> list[str]:
    """Against each baseline: the largest gain, where, and how often it is the paper's."""
    lines = []
    everything = [pair for part in (DEVICE, BUDGET, SEQUENCE) for pair in cases(rows, part).items()]
    for arm in EXISTING:
        gains = [(value, case) for case, best in everything if (value := gain(best, (arm,))) is not None]
        if not gains:
            continue
        value, case = max(gains, key=lambda pair: pair[0])
        many = sum(value >= PAPER_GAIN for value, _ in gains)
        middle = statistics.median(value for value, _ in gains)
        lines.append([arm, f"{middle:.3f}", f"**{value:.3f}**", case_name(case), f"{many} of {len(gains)}"])
    return table(["baseline", "median", "largest", "where", f"cases with {PAPER_GAIN} or more"], lines)


def case_name(case: Case) -> str:
    """For people."""
    tokens = f", {case.sequence} tokens" if case.part == SEQUENCE else ""
    return f"{case.place.name}, {memory_name(case.part, case.share)}{tokens}"


def without_gain(found: Cases) -> list[str]:
    """How many cases have no gain over all that exists, by cluster and reason, and what could be gained at most."""
    lines = []
    for cluster in CLUSTERS:
        chosen = of_cluster(found, cluster)
        flat = [best for best in chosen.values() if (gain(best) or 0.0) < LEAST_GAIN]
        for reason in dict.fromkeys(map(why_none, flat)):
            here = [best for best in flat if why_none(best) == reason]
            existing = [row for best in here if (row := best_of(best, EXISTING)) is not None]
            most = max((row.exposed_share for row in existing), default=0.0)
            lines.append([cluster, reason, f"{len(here)} of {len(chosen)}", percent(most, 1)])
        won = len(chosen) - len(flat)
        lines.append([cluster, f"*gain of {LEAST_GAIN} or more*", f"{won} of {len(chosen)}", ""])
    return table(["cluster", "why there is none", "cases", "exposed by the best existing arm, at most"], lines)


def losses(rows: Sequence[Row]) -> list[str]:
    """Cases in which ours is slower than something that exists by 1 % or more, worst first."""
    lines = []
    for part in (DEVICE, BUDGET, SEQUENCE):
        for case, best in cases(rows, part).items():
            value, other = gain(best), best_of(best, EXISTING)
            if value is not None and other is not None and value < 1 - LITTLE:
                lines.append((value, [case_name(case), other.arm, f"{value:.3f}"]))
    lines.sort(key=lambda pair: pair[0])
    return table(["where", "faster arm", "ours over it"], [cells for _, cells in lines]) if lines else []
