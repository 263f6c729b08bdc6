"""The study's pictures: bars by arm, throughput over memory, parts of the gain. All simulated, and they say so."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tools.study_lib.arms import OURS
from tools.study_lib.figures import MEGATRON, NONE, STEPS, STOCK, Case, Found, best_of, cases, steps_of
from tools.study_lib.matrix import BUDGET, CLUSTERS, DEVICE, SHARES, Row
from tools.study_lib.tables import of_cluster, percent

BARS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "best of Megatron-Core": (MEGATRON, "#8795a1"),
    "AdaPipe, own split": (("adapipe+partition", "adapipe"), "#4c78a8"),
    "ours": ((OURS,), "#e0a526"),
    "no recompute": ((NONE,), "#3f8f6b"),
}
"""Of the first picture: name, arms of which the best is taken, colour."""
LINES: Mapping[str, tuple[str, str]] = {
    "stock-block": ("#8795a1", "stock block"),
    "selective": ("#a0785a", "selective"),
    "adapipe+partition": ("#4c78a8", "AdaPipe, own split"),
    "early": ("#8a6fb0", "early"),
    OURS: ("#e0a526", "ours"),
}
PART_COLOURS = ("#8795a1", "#4c78a8", "#8a6fb0", "#e0a526", "#3f8f6b")
TIGHT = 0.1
PIXELS_PER_INCH = 110


def draw(rows: Sequence[Row], folder: pathlib.Path) -> None:
    """Write study_arms.png, study_memory.png and study_parts.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, picture in (("arms", _arms), ("memory", _memory), ("parts", _parts)):
        figure = picture(pyplot, rows)
        figure.savefig(folder / f"study_{name}.png", dpi=PIXELS_PER_INCH)
        pyplot.close(figure)


def _arms(pyplot: Any, rows: Sequence[Row]) -> Any:
    tight = {case: best for case, best in cases(rows, BUDGET).items() if case.share == TIGHT}
    columns = {"94 % of 40 GB": cases(rows, DEVICE), f"{percent(TIGHT)} of the way from full to none": tight}
    figure, axes = pyplot.subplots(
        len(CLUSTERS), len(columns), figsize=(13, 8.4), sharey="row", squeeze=False, layout="constrained"
    )
    for line, cluster in zip(axes, CLUSTERS, strict=True):
        for axis, (title, found) in zip(line, columns.items(), strict=True):
            _bars(axis, of_cluster(found, cluster))
            axis.set_title(f"{cluster}, {title}", fontsize=10, loc="left")
        line[0].set_ylabel("x stock full", fontsize=9)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=9, ncols=len(BARS), loc="outside lower center")
    figure.suptitle("Throughput over stock full recompute, simulated; TP x PP below the model", fontsize=11)
    return figure


def _bars(axis: Any, chosen: Mapping[Case, Found]) -> None:
    """From stock full, which is 1, upwards; where an arm does not fit there is no bar."""
    for number, (name, (arms, colour)) in enumerate(BARS.items()):
        heights = [max(0.0, _over_stock(best, arms) - 1.0) for best in chosen.values()]
        places = [index + (number - (len(BARS) - 1) / 2) * 0.2 for index in range(len(chosen))]
        axis.bar(places, heights, 0.18, bottom=1.0, color=colour, label=name)
    axis.set_xticks(range(len(chosen)), [_label(case, "\n") for case in chosen], fontsize=7)
    _plain(axis)


def _over_stock(best: Found, arms: Sequence[str]) -> float:
    row = best_of(best, arms)
    return row.tokens_per_s / best[STOCK].tokens_per_s if row is not None and STOCK in best else 0.0


def _memory(pyplot: Any, rows: Sequence[Row]) -> Any:
    found = cases(rows, BUDGET)
    figure, axes = pyplot.subplots(1, len(CLUSTERS), figsize=(11, 4.0), sharey=True, layout="constrained")
    for axis, cluster in zip(axes, CLUSTERS, strict=True):
        chosen = of_cluster(found, cluster)
        for arm, (colour, name) in LINES.items():
            points = [(share, _mean_over_stock(chosen, share, arm)) for share in SHARES]
            known = [(share * 100, value) for share, value in points if value is not None]
            places, heights = [place for place, _ in known], [height for _, height in known]
            axis.plot(places, heights, color=colour, label=name, marker="o", markersize=3.5)
        axis.set_title(cluster, fontsize=10)
        axis.set_xlabel("memory: 0 is full's, 100 is none's (%)", fontsize=9)
        _plain(axis)
    axes[0].set_ylabel("x stock full, mean of the places", fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Throughput over memory, simulated (selective: only where it fits everywhere)", fontsize=11)
    return figure


def _mean_over_stock(chosen: Mapping[Any, Found], share: float, arm: str) -> float | None:
    """None unless the arm fits at every place: a mean over other places would be no curve."""
    here = [best for case, best in chosen.items() if case.share == share and STOCK in best]
    if not here or any(arm not in best for best in here):
        return None
    return statistics.fmean(best[arm].tokens_per_s / best[STOCK].tokens_per_s for best in here)


def _parts(pyplot: Any, rows: Sequence[Row]) -> Any:
    found = {case: best for case, best in cases(rows, BUDGET).items() if case.share == TIGHT}
    widths = [max(1, len(of_cluster(found, cluster))) for cluster in CLUSTERS]
    figure, axes = pyplot.subplots(
        1, len(CLUSTERS), figsize=(11, 4.4), sharey=True, layout="constrained", width_ratios=widths
    )
    for axis, cluster in zip(axes, CLUSTERS, strict=True):
        chosen = of_cluster(found, cluster)
        known = [(case, parts) for case, best in chosen.items() if (parts := steps_of(rows, case, best)) is not None]
        up, down = [1.0] * len(known), [1.0] * len(known)
        for number, (name, _, _) in enumerate(STEPS):
            heights = [parts[number] for _, parts in known]
            bottoms = [up[place] if height >= 0 else down[place] for place, height in enumerate(heights)]
            axis.bar(range(len(known)), heights, 0.7, bottom=bottoms, color=PART_COLOURS[number], label=name)
            up = [high + max(height, 0.0) for high, height in zip(up, heights, strict=True)]
            down = [low + min(height, 0.0) for low, height in zip(down, heights, strict=True)]
        labels = [_label(case, " ") for case, _ in known]
        axis.set_xticks(range(len(known)), labels, fontsize=8, rotation=90)
        axis.axhline(1.0, color="black", linewidth=0.6)
        axis.set_title(cluster, fontsize=10)
        _plain(axis)
    axes[0].set_ylim(0.98, None)
    axes[0].set_ylabel("x stock full", fontsize=9)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, ncols=len(STEPS), loc="outside lower center")
    figure.suptitle(
        f"Parts of the gain at {percent(TIGHT)} of the way from full's memory to none's, simulated", fontsize=11
    )
    return figure


def _label(case: Case, between: str) -> str:
    place = case.place
    return f"{place.model.removeprefix('gpt-').upper()}{between}{place.tensor_parallel}x{place.pipeline_parallel}"


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
