"""The study's page, from its rows."""

import statistics
from collections.abc import Mapping, Sequence

from tools.study_lib import tables
from tools.study_lib.arms import OURS
from tools.study_lib.figures import EXISTING, LEAST_GAIN, LITTLE, MEGATRON, PAPER_GAIN, STEPS, STOCK, cases, gain
from tools.study_lib.matrix import (
    BUDGET,
    CLUSTERS,
    DEVICE,
    DEVICE_SHARE,
    GLOBAL_TOKENS,
    MICRO_BATCHES,
    SEQUENCE,
    SEQUENCES,
    Row,
)

COMMAND = ".venv/bin/python tools/reproduce_study.py --write"
TIGHT = 0.1
"""The memory at which the parts are shown place by place."""
ROW_COMMAND = """\
    overlap-recompute compare --model gpt-13b --hardware a100-40gb-pcie --tensor-parallel 4 --pipeline-parallel 2 \\
        --micro-batch 4 --microbatches 32 --memory-share 0.1 --arms stock-full,full,adapipe,early,mix,mix+partition"""


def page(rows: Sequence[Row], facts: Mapping[str, object]) -> str:
    """The whole page.

    Args:
        rows: of the study.
        facts: `date`, `commit` and `seconds` of the run.
    """
    parts = [
        _head(facts),
        _headline(rows),
        _arms(),
        _device(rows),
        _memory(rows),
        _parts(rows),
        _long(rows),
        _none(rows),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(facts: Mapping[str, object]) -> list[str]:
    return [
        "# Study: GPT 1.3B to 23B, simulated",
        "",
        f"Commit {facts['commit']}, {facts['date']}, {facts['seconds']} s on two cores:",
        "",
        f"    {COMMAND}",
        "",
        "**Every figure and every picture here is simulated** from analytic profiles "
        "([hardware](../docs/hardware.md)); no GPU was used, and nothing was measured on the hardware named. How far "
        "the simulator was from real runs of this trainer: [simulated_real.md](simulated_real.md).",
        "",
        "The paper (Chen et al., arXiv 2406.08756) reports up to 1.37 times the throughput of existing recomputation "
        "on clusters with NVLink, with PCIe and with Ascend devices. Its layouts, micro-batches and memory were not "
        "at hand; models are those of its sizes ([presets](../docs/presets.md)), and the settings below are ours.",
    ]


def _headline(rows: Sequence[Row]) -> list[str]:
    lines = ["## In short", ""]
    for part, name in (
        (DEVICE, f"{tables.percent(DEVICE_SHARE)} of 40 GB"),
        (BUDGET, "memory between full and none"),
        (SEQUENCE, f"sequences of {' and '.join(map(str, SEQUENCES))}"),
    ):
        found = {case: value for case, best in cases(rows, part).items() if (value := gain(best)) is not None}
        if found:
            top = max(found, key=lambda case: found[case])
            middle = statistics.median(found.values())
            many = sum(value >= LEAST_GAIN for value in found.values())
            lines.append(
                f"- {name}: over the best existing arm up to **{found[top]:.3f}x** ({tables.case_name(top)}), median "
                f"{middle:.3f}x; a gain of {LEAST_GAIN} or more in {many} of {len(found)} cases."
            )
    stock = [value for case, best in _all(rows) if (value := gain(best, (STOCK,))) is not None]
    many = sum(value >= PAPER_GAIN for value in stock)
    if stock:
        lines.append(
            f"- {PAPER_GAIN}x over Megatron-Core's full recompute is reached in {many} of {len(stock)} cases (up to "
            f"{max(stock):.3f}x), most of it by fewer replays and by the choice of what is kept, not by overlap: see "
            f"*Which part gains what*. Other baselines over which it is reached: {_paper_elsewhere(rows)}."
        )
    return lines


def _all(rows: Sequence[Row]) -> list[tuple[tables.Case, tables.Found]]:
    return [pair for part in (DEVICE, BUDGET, SEQUENCE) for pair in cases(rows, part).items()]


def _paper_elsewhere(rows: Sequence[Row]) -> str:
    others = [arm for arm in EXISTING if arm != STOCK]
    reached = [arm for arm in others if any((gain(best, (arm,)) or 0.0) >= PAPER_GAIN for _, best in _all(rows))]
    return ", ".join(reached) or "none"


def _arms() -> list[str]:
    return [
        "## Arms",
        "",
        "`none`: no recompute, the limit. `stock-full`, `stock-block`: Megatron-Core's full recomputation, of all "
        "layers and of the first k of each stage, collectives repeated. `uniform`, `block`, `full`, `selective`: the "
        "same choices in our runtime, on demand, no collective repeated (better than Megatron-Core's own). "
        "`checkmate`, `adapipe`: the least recompute that fits, on demand; `adapipe+partition` also searches for the "
        "layers of each stage, as AdaPipe does. `early`: adapipe's choice, replayed in waits of the pipeline. `heu`, "
        f"`mix`: ours, windows of tensor parallelism too. **`{OURS}`: ours with its own split.** Flash attention in "
        "every arm, no sequence parallelism, no data parallelism, 1F1B.",
        "",
        f"*over Megatron*: the best of {', '.join(MEGATRON)}. *over all*: the best of {', '.join(EXISTING)}.",
        "",
        f"An iteration has {GLOBAL_TOKENS} tokens whatever the micro-batch, so a larger one leaves fewer microbatches "
        "and a larger bubble. Clusters: "
        + "; ".join(f"*{name}*: `{hardware}`" for name, hardware in CLUSTERS.items())
        + ". On several nodes (two of 8 GPUs) pipeline transfers cross the network and tensor-parallel groups do not.",
        "",
        "One case of it, by hand:",
        "",
        ROW_COMMAND,
    ]


def _device(rows: Sequence[Row]) -> list[str]:
    found = cases(rows, DEVICE)
    lines = [
        f"## Throughput by arm, {tables.percent(DEVICE_SHARE)} of a device of 40 GB",
        "",
        "Thousands of tokens a second, all devices, and behind the @ the micro-batch: of "
        f"{', '.join(map(str, MICRO_BATCHES))} each arm takes the fastest that fits it, so memory that an arm frees "
        "buys a larger micro-batch where that wins. `-`: fits at none.",
        "",
        "![throughput by arm, simulated](../docs/images/study_arms.png)",
    ]
    for cluster, hardware in CLUSTERS.items():
        lines += ["", f"### {cluster} (`{hardware}`)", "", *tables.by_arm(tables.of_cluster(found, cluster))]
    return lines


def _memory(rows: Sequence[Row]) -> list[str]:
    return [
        "## Throughput over memory",
        "",
        "The memory that full recompute needs is 0 %, the memory that no recompute needs is 100 %; each place at the "
        "largest micro-batch at which full recompute fits the device, which is how people fill it.",
        "",
        "![throughput over memory, simulated](../docs/images/study_memory.png)",
        "",
        *tables.over_memory(cases(rows, BUDGET)),
        "",
        f"### Where {PAPER_GAIN}x is reached, all cases of the study",
        "",
        *tables.reached(rows),
    ]


def _parts(rows: Sequence[Row]) -> list[str]:
    steps = "; ".join(f"*{name}*: from `{before}` to `{after}`" for name, before, after in STEPS)
    return [
        "## Which part gains what",
        "",
        f"Each step switches one part on, in this order, at one micro-batch (the fastest of ours). {steps}. A step is "
        "the throughput it adds in parts of stock full recompute's, so the steps sum to the gain; in another order a "
        "part that is hidden by another one would read differently. *Early* adds next to nothing here: a stage that "
        "waits for another one is not the slowest, and what it replays in that wait shortens the iteration only where "
        "the waits are those of transfers.",
        "",
        "![parts of the gain, simulated](../docs/images/study_parts.png)",
        "",
        "Means over the places of a cluster:",
        "",
        *tables.mean_parts(rows),
        "",
        f"Place by place, at {tables.percent(TIGHT)} of the way from full's memory to none's:",
        "",
        *tables.parts_by_place(rows, TIGHT),
    ]


def _long(rows: Sequence[Row]) -> list[str]:
    return [
        "## Long sequences",
        "",
        f"Micro-batch 1, {tables.percent(DEVICE_SHARE)} of 40 GB, the second layout of each model.",
        "",
        *tables.by_arm(cases(rows, SEQUENCE), with_sequence=True),
        "",
        "Where only `stock-full` and `stock-block` have a figure, ours does not fit: our full recompute keeps of each "
        "layer its input and the residual behind its attention, stock full recompute its input alone.",
    ]


def _none(rows: Sequence[Row]) -> list[str]:
    lost = tables.losses(rows)
    lines = [
        "## Where there is no gain, and why",
        "",
        f"Over the best of all existing arms; below {LEAST_GAIN} counts as none. What the best existing arm exposes "
        "bounds what hiding could win.",
        "",
        f"With {tables.percent(DEVICE_SHARE)} of 40 GB:",
        "",
        *tables.without_gain(cases(rows, DEVICE)),
        "",
        "With memory between full's and none's:",
        "",
        *tables.without_gain(cases(rows, BUDGET)),
        "",
        "With long sequences:",
        "",
        *tables.without_gain(cases(rows, SEQUENCE)),
    ]
    if lost:
        lines += ["", f"Ours is slower than something that exists by {tables.percent(LITTLE)} or more here:", "", *lost]
    return lines
