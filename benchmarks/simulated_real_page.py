"""Rows, page and plot of benchmarks/simulated_real.py, from the pieces it has kept."""

import os
import pathlib
import platform
import statistics
from dataclasses import dataclass

TARGET_MEDIAN, TARGET_WORST, APART = 0.05, 0.12, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An arm, all pieces together."""

    layout: str
    profile_mbit: int
    rate_mbit: int
    microbatches: int
    arm: str
    iterations: int
    predicted_s: float
    measured_s: float
    quartiles_s: float
    """Between the quartiles of what was measured."""
    waits_s: tuple[float, float]
    """Predicted and measured, mean over ranks: in windows, without the recompute in them."""
    exposed_s: tuple[float, float]
    """Predicted and measured, mean over ranks: recompute outside of windows."""
    hidden_s: tuple[float, float]
    """Predicted and measured, mean over ranks: recompute in windows."""
    probe_ratio: float
    """Time of the fixed load beside the arm over that beside its profiles."""

    @property
    def error(self) -> float:
        """Of the prediction."""
        return self.predicted_s / self.measured_s - 1

    @property
    def rest_s(self) -> tuple[float, float]:
        """Predicted and measured: all that is neither a wait nor recompute."""
        parts = zip((self.predicted_s, self.measured_s), self.waits_s, self.exposed_s, self.hidden_s, strict=True)
        first, second = (total - waits - exposed - hidden for total, waits, exposed, hidden in parts)
        return first, second


def rows_of(kept: dict[str, list[dict]]) -> list[Row]:
    """A row for each arm of each case."""
    rows = []
    for layout, pieces in kept.items():
        alike: dict[tuple, list[dict]] = {}
        for piece in pieces:
            for turn in sorted(piece["turns"], key=lambda turn: turn["case"]):
                alike.setdefault((turn["case"], turn["name"]), []).append(turn)
        order = {name: place for place, name in enumerate(alike)}
        rows += [_row(layout, pieces[0]["profile_mbit"], alike[key]) for key in sorted(alike, key=order.__getitem__)]
    return rows


def _row(layout: str, profile_mbit: int, turns: list[dict]) -> Row:
    times_s = [time_s for turn in turns for time_s in turn["times_s"]]
    low, _, high = statistics.quantiles(times_s, n=4, method="inclusive")

    def predicted(part: str) -> float:
        return statistics.mean(turn["predicted"][part] for turn in turns)

    def figure(begin: str, end: str = "") -> float:
        sums = [
            sum(value for name, value in turn["figures"].items() if name.startswith(f"overlap/{begin}") and end in name)
            for turn in turns
        ]
        return statistics.mean(sums) / 1e3

    return Row(
        layout=layout,
        profile_mbit=profile_mbit,
        rate_mbit=turns[0]["rate_mbit"],
        microbatches=turns[0]["microbatches"],
        arm=turns[0]["name"],
        iterations=len(times_s),
        predicted_s=predicted("iteration_s"),
        measured_s=statistics.median(times_s),
        quartiles_s=high - low,
        waits_s=(predicted("waits_s"), figure("window_ms/") - figure("filled_ms/")),
        exposed_s=(predicted("exposed_s"), figure("exposed_recompute_ms")),
        hidden_s=(predicted("hidden_s"), figure("hidden_recompute_ms")),
        probe_ratio=statistics.mean(turn["probe_ms"] / turn["probe_ms of profiles"] for turn in turns),
    )


def wrong_orders(rows: list[Row]) -> tuple[list[str], int]:
    """Pairs of arms of one case that differ by more than `APART` and are predicted the other way round; all pairs."""
    found, pairs = [], 0
    for index, one in enumerate(rows):
        for other in rows[index + 1 :]:
            same = (one.layout, one.rate_mbit, one.microbatches) == (other.layout, other.rate_mbit, other.microbatches)
            apart = one.measured_s / other.measured_s - 1
            if not same or abs(apart) <= APART:
                continue
            pairs += 1
            if (one.predicted_s > other.predicted_s) != (apart > 0):
                found.append(f"{one.layout} {one.rate_mbit} Mbit/s: {one.arm} and {other.arm} ({apart:+.1%})")
    return found, pairs


def page(kept: dict[str, list[dict]]) -> str:
    """The whole page."""
    rows = rows_of(kept)
    errors = [abs(row.error) for row in rows]
    wrong, pairs = wrong_orders(rows)
    pieces = [piece for found in kept.values() for piece in found]
    commits = ", ".join(sorted({piece["commit"] for piece in pieces}))
    dates = ", ".join(sorted({piece["date"] for piece in pieces}))
    return "\n".join(
        [
            "# Simulated against real",
            "",
            f"Commit {commits}; {dates}; {platform.machine()} with {os.cpu_count()} cores, one core per rank, gloo, "
            "fp32; 4 layers, h=512, s=256, b=2. Links are shaped by tc (tools/linklab).",
            "",
            "    .venv/bin/python benchmarks/simulated_real.py --write",
            "",
            f"{len(rows)} runs: median error **{statistics.median(errors):.1%}** (target {TARGET_MEDIAN:.0%}), worst "
            f"**{max(errors):.1%}** (target {TARGET_WORST:.0%}). {pairs} pairs of arms of one case differ by more than "
            f"{APART:.0%}; predicted in the wrong order: **{len(wrong)}**{': ' if wrong else ''}{'; '.join(wrong)}.",
            "",
            *_method(kept),
            "",
            *_table(rows),
            "",
            "![predicted over measured time](../docs/images/simulated_real.png)",
            "",
            "## Where the time is",
            "",
            "Seconds, predicted / measured, means over ranks. Waits: in windows, without the recompute in them. Rest: "
            "compute, update, and what a pipeline's stage waits at the end of the step. Recompute in windows shares "
            "its core with the communication, and takes longer than the simulator says; as long as the window is "
            "longer still, that costs nothing.",
            "",
            *_parts(rows),
            "",
            "## Drift of the machine",
            "",
            "Compute of a microbatch (all layers and both ends, ms) in the profiles of each piece, in order, and in "
            "brackets the time of a fixed load of matrix products and passes over memory on the slower rank (ms).",
            "",
            *_drift(kept),
            "",
        ]
    )


def _method(kept: dict[str, list[dict]]) -> list[str]:
    pieces = ", ".join(f"{name}: {len(found)}" for name, found in kept.items())
    return [
        "Each run is predicted from profiles of other runs: without recompute, of the even split, with 4 microbatches, "
        "at another rate (links scaled). In one start of two ranks (a piece) profiles and arms take turns: every "
        "arm and a profile that do not count, profile, arms of a case, profile, arms of the next case, and so on; a "
        "case is predicted with the mean of the two profiles beside it. Profile and arms so see the machine in nearly "
        "the same state: the error is that of model and scaling, not that of a machine that changes between a profile "
        "and a run hours later (the end of the page shows how much it does). Predicted: mean over pieces; measured: "
        "median over the iterations of all pieces; spread: between quartiles; n: iterations. The first iteration of "
        f"each turn does not count. Pieces: {pieces}.",
        "",
        "Probe: time of a fixed load right before the arm over that before its profiles; nothing is normalised by it. "
        "glibc keeps freed memory (MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_=2147483647) and asks for huge pages "
        "(GLIBC_TUNABLES=glibc.malloc.hugetlb=1), in profiles and arms alike: "
        "by default it maps large tensors anew, and one and the same operation then takes 11 or 19 ms.",
        "",
        "Limits: one machine, two ranks, a small model, links without delay; predictions extrapolate a rate by a "
        "factor of two at most. A profile of another day on a machine that drifts is worth less.",
    ]


def _table(rows: list[Row]) -> list[str]:
    lines = [
        "| layout | profiled at | rate, Mbit/s | microbatches | arm | predicted s | measured s | spread | n | probe | "
        "error |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        cells = [
            row.layout, row.profile_mbit, row.rate_mbit, row.microbatches, row.arm, f"{row.predicted_s:.3f}",
            f"{row.measured_s:.3f}", f"{row.quartiles_s:.3f}", row.iterations, f"{row.probe_ratio:.2f}",
            f"{row.error:+.1%}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _parts(rows: list[Row]) -> list[str]:
    lines = [
        "| layout | rate | microbatches | arm | waits | hidden recompute | exposed recompute | rest |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        parts = [f"{one:.3f} / {other:.3f}" for one, other in (row.waits_s, row.hidden_s, row.exposed_s, row.rest_s)]
        cells = [row.layout, row.rate_mbit, row.microbatches, row.arm, *parts]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _drift(kept: dict[str, list[dict]]) -> list[str]:
    lines = ["| layout | piece | profiles |", "|---|---|---|"]
    for name, pieces in kept.items():
        for number, piece in enumerate(pieces):
            found = [f"{one['compute_ms']:.1f} ({one['probe_ms']:.2f})" for one in piece["profiles"]]
            lines.append(f"| {name} | {number + 1} | {', '.join(found)} |")
    return lines


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Predicted over measured seconds, one colour a layout."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5.6, 5.2), layout="constrained")
    for name in dict.fromkeys(row.layout for row in rows):
        points = [(row.measured_s, row.predicted_s) for row in rows if row.layout == name]
        axis.scatter(*zip(*points, strict=True), label=name, s=22)
    ends = [0.0, max(max(row.measured_s, row.predicted_s) for row in rows) * 1.05]
    axis.plot(ends, ends, color="black", linewidth=0.8)
    for share in (1 - TARGET_WORST, 1 + TARGET_WORST):
        axis.plot(ends, [end * share for end in ends], color="grey", linewidth=0.6, linestyle="--")
    axis.set_xlabel("measured s / iteration")
    axis.set_ylabel("predicted s / iteration")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
