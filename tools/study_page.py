"""The page and the plots of tools/reproduce_study.py, from its rows."""

import pathlib
from collections.abc import Mapping, Sequence

OURS = "mix+partition"
EXISTING = ("stock-full", "selective", "full", "checkmate", "adapipe")
"""Recomputation as it is: on demand."""
PARTS = (
    ("fewer replays", "stock-full", "full"),
    ("what is kept", "full", "adapipe"),
    ("windows", "adapipe", "mix"),
    ("partition", "mix", "mix+partition"),
)
"""A gain in steps: from one arm to the next."""

Row = Mapping[str, object]


def page(data: Mapping, models: Sequence[str], clusters: Mapping[str, str]) -> str:
    """The whole page."""
    rows = data["rows"]
    lines = [
        "# Study: GPT 1.3B to 23B, simulated",
        "",
        f"Commit {data['commit']}, {data['date']}, {data['seconds']} s on two cores:",
        "",
        "    .venv/bin/python tools/reproduce_study.py --write",
        "",
        "**Every figure is simulated** from analytic profiles ([hardware](../docs/hardware.md)); no GPU was used, and "
        "nothing here was measured on the hardware named. How far the simulator was from real runs of this trainer: "
        "[simulated_real.md](simulated_real.md).",
        "",
        "Throughput of the fastest micro-batch of each arm, 32 microbatches an iteration, 94 % of the device's memory. "
        "`stock-full`: Megatron-Core's full recomputation, collectives included. `full`: the same units on demand, "
        "collectives not repeated. `mix+partition`: ours. Gain: over the best *existing* arm that fits "
        f"({', '.join(EXISTING)}).",
        "",
        *_headline(rows, models, clusters),
    ]
    for name in clusters:
        lines += ["", f"## {name} ({clusters[name]})", "", *_cluster_table(rows, models, name)]
    lines += ["", "## Which part gains what", "", *_parts_table(rows, models, clusters)]
    lines += ["", "![throughput over the best existing arm](../docs/images/study_gain.png)", ""]
    return "\n".join(lines)


def best(rows: Sequence[Row], **where: object) -> dict[str, Row]:
    """The fastest row of each arm among those that match."""
    found: dict[str, Row] = {}
    for row in rows:
        if row["fits"] and all(row[name] == value for name, value in where.items()):
            name = str(row["arm"])
            if name not in found or speed(row) > speed(found[name]):
                found[name] = row
    return found


def speed(row: Row) -> float:
    """Tokens a second."""
    return float(str(row["tokens_per_s"]))


def gain(found: Mapping[str, Row]) -> float | None:
    """Ours over the best existing arm; None where one of them does not fit."""
    existing = [speed(found[name]) for name in EXISTING if name in found]
    return speed(found[OURS]) / max(existing) if OURS in found and existing else None


def _layouts(rows: Sequence[Row]) -> list[tuple[object, object]]:
    return sorted({(row["tensor_parallel"], row["pipeline_parallel"]) for row in rows}, key=str)


def _headline(rows: Sequence[Row], models: Sequence[str], clusters: Mapping[str, str]) -> list[str]:
    places = []
    for model in models:
        for cluster in clusters:
            for tensor, pipeline in _layouts(rows):
                found = best(rows, model=model, cluster=cluster, tensor_parallel=tensor, pipeline_parallel=pipeline)
                value = gain(found)
                if value is not None:
                    against = speed(found[OURS]) / speed(found["stock-full"]) if "stock-full" in found else None
                    places.append((value, against, f"{model} on {cluster}, TP={tensor} x PP={pipeline}"))
    if not places:
        return ["No configuration fits."]
    top, least = max(places), min(places)
    strongest = max((place for place in places if place[1] is not None), key=lambda place: place[1] or 0.0)
    middle = sorted(value for value, _, _ in places)[len(places) // 2]
    flat = [name for value, _, name in places if value < 1.01]
    return [
        f"- Largest gain over the best existing arm: **{top[0]:.3f}x** ({top[2]}).",
        f"- Largest gain over stock full recomputation: **{strongest[1]:.3f}x** ({strongest[2]}).",
        f"- Median of {len(places)} configurations: {middle:.3f}x; least: {least[0]:.3f}x ({least[2]}).",
        f"- No gain (below 1.01x) in {len(flat)} of them{': ' + '; '.join(flat[:6]) if flat else ''}.",
    ]


def _cluster_table(rows: Sequence[Row], models: Sequence[str], cluster: str) -> list[str]:
    arms = list(dict.fromkeys(str(row["arm"]) for row in rows))
    lines = [
        f"| model | TP x PP | {' | '.join(arms)} | gain | ours: micro-batch, MFU, exposed |",
        "|---|---" + "|---" * (len(arms) + 2) + "|",
    ]
    for model in models:
        for tensor, pipeline in _layouts(rows):
            found = best(rows, model=model, cluster=cluster, tensor_parallel=tensor, pipeline_parallel=pipeline)
            if not found:
                continue
            cells = [f"{speed(found[arm]) / 1000:.2f}" if arm in found else "-" for arm in arms]
            value, ours = gain(found), found.get(OURS)
            note = "" if ours is None else _note(ours)
            shown = "-" if value is None else f"**{value:.3f}**"
            lines.append(f"| {model} | {tensor} x {pipeline} | {' | '.join(cells)} | {shown} | {note} |")
    return [*lines, "", "Thousands of tokens a second, all devices. `-`: does not fit."]


def _note(row: Row) -> str:
    share = float(str(row["exposed_us"])) / float(str(row["iteration_us"]))
    return f"{row['micro_batch']}, {float(str(row['mfu'])):.1%}, {share:.1%}"


def _parts_table(rows: Sequence[Row], models: Sequence[str], clusters: Mapping[str, str]) -> list[str]:
    """Gains step by step at one micro-batch: the largest at which every arm of the steps fits."""
    heads = [name for name, _, _ in PARTS]
    lines = [
        f"| model | cluster | TP x PP | micro-batch | {' | '.join(heads)} | together |",
        "|---|---|---|---" + "|---" * (len(heads) + 1) + "|",
    ]
    for model in models:
        for cluster in clusters:
            for tensor, pipeline in _layouts(rows):
                where = {"model": model, "cluster": cluster, "tensor_parallel": tensor, "pipeline_parallel": pipeline}
                micro = _largest_micro_batch(rows, where)
                if micro is None:
                    continue
                found = best(rows, **where, micro_batch=micro)
                steps = [speed(found[after]) / speed(found[before]) for _, before, after in PARTS]
                total = speed(found[OURS]) / speed(found[PARTS[0][1]])
                cells = " | ".join(f"{step:.3f}" for step in steps)
                lines.append(f"| {model} | {cluster} | {tensor} x {pipeline} | {micro} | {cells} | {total:.3f} |")
    explained = "; ".join(f"*{name}*: from `{before}` to `{after}`" for name, before, after in PARTS)
    return [*lines, "", f"Throughput of one arm over that of the one before, all at one micro-batch. {explained}."]


def _largest_micro_batch(rows: Sequence[Row], where: Mapping[str, object]) -> object | None:
    needed = {arm for _, before, after in PARTS for arm in (before, after)}
    sizes = sorted({int(str(row["micro_batch"])) for row in rows}, reverse=True)
    return next((size for size in sizes if needed <= set(best(rows, **where, micro_batch=size))), None)


def draw(rows: Sequence[Row], models: Sequence[str], clusters: Mapping[str, str], folder: pathlib.Path) -> None:
    """Bars: gain over the best existing arm and over stock full, the best layout of each model and cluster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(clusters), figsize=(11, 3.6), sharey=True, layout="constrained")
    for place, (axis, cluster) in enumerate(zip(axes, clusters, strict=True)):
        for offset, (label, colour) in enumerate((("best existing", "#4c78a8"), ("stock full", "#9ecae9"))):
            heights = [_best_gain(rows, model, cluster, stock=bool(offset)) for model in models]
            places = [index + (offset - 0.5) * 0.38 for index in range(len(models))]
            axis.bar(places, heights, 0.36, color=colour, label=f"over {label}")
        axis.set_xticks(range(len(models)), [name.removeprefix("gpt-").upper() for name in models])
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_title(cluster, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        if place == 0:
            axis.set_ylabel("throughput of ours (simulated)")
            axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylim(0.9, None)
    figure.savefig(folder / "study_gain.png", dpi=110)


def _best_gain(rows: Sequence[Row], model: str, cluster: str, *, stock: bool) -> float:
    values = [0.0]
    for tensor, pipeline in _layouts(rows):
        found = best(rows, model=model, cluster=cluster, tensor_parallel=tensor, pipeline_parallel=pipeline)
        if stock and OURS in found and "stock-full" in found:
            values.append(speed(found[OURS]) / speed(found["stock-full"]))
        elif not stock:
            values.append(gain(found) or 0.0)
    return max(values)
