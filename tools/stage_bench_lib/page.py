"""The record as a page of Markdown; the label stands under every table."""

from collections.abc import Sequence
from typing import Any

from tools.stage_bench_lib.energy import SHORT_S
from tools.stage_bench_lib.record import CONNECTIONS

US_PER_MS = 1e3
BYTES_PER_MIB = 1 << 20
ABSENT = "-"


def page(record: dict[str, Any]) -> str:
    """Head, and one table for the stage, for what was alone, and for the pipeline."""
    taken, stage = record["taken"], record["stage"]
    label = f"*{record['label']}; commit {taken['commit']}, {taken['date']}, {taken['device']}, "
    label += f"{CONNECTIONS} {taken[CONNECTIONS]}.*"
    lines = [
        f"# {record['options']['preset']}, stage {stage['number']} of {stage['stages']}",
        "",
        f"{record['model']}. {stage['layers']} layers of the stage were built. Transfers: {stage['link']}.",
        "",
        f"    {taken['command']}",
        "",
        f"## The stage, {stage['microbatches']} microbatches a step, at most {stage['in_flight']} in flight",
        "",
        *_arms(record),
        "",
        label,
        "",
        *_hidden(record),
        *_energy(record["energy"]),
        "",
        label,
        "",
        "## Alone and at a time, one microbatch",
        "",
        *_alone(record["alone"]),
        "",
        label,
        "",
        "## The pipeline, simulated",
        "",
        *_composed(record),
        "",
        label,
        "",
    ]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _arms(record: dict[str, Any]) -> list[str]:
    heads = (
        "arm", "step ms", "spread ms", "forward ms", "backward ms", "steady pair ms", "peak MiB", "above weights MiB",
        "held peak MiB", "gradients",
    )  # fmt: skip
    rows = [
        [
            name,
            *(_ms(arm[key]) for key in ("step_us", "step_spread_us", "forward_us", "backward_us", "steady_us")),
            *(_mib(arm[key]) for key in ("peak_bytes", "peak_above_weights_bytes", "held_peak_bytes")),
            arm["gradients"],
        ]
        for name, arm in record["arms"].items()
    ]
    rows += [[name, f"does not fit: {why}", *[ABSENT] * (len(heads) - 2)] for name, why in record["do_not_fit"].items()]
    return _table(heads, rows)


def _hidden(record: dict[str, Any]) -> list[str]:
    hidden = record["hidden"]
    same = "the same, bit for bit," if record["gradients_equal"] else "NOT the same"
    lines = [f"Gradients are {same} in all arms."]
    if hidden["fraction"] is not None:
        lines.append(
            f"Hidden: {hidden['fraction']:.1%} of {_ms(hidden['recompute_us'])} ms a step ({hidden['of']}); "
            f"overlapped takes {_ms(hidden['hidden_us'])} ms less than on demand."
        )
    elif hidden["of"] is not None:
        lines.append(f"No hidden fraction: recompute took no measurable time ({hidden['of']}); measure more steps.")
    return lines


def _energy(energy: dict[str, Any]) -> list[str]:
    """Sentences under the table of the stage."""
    if not energy["measured"]:
        return ["", f"Energy was not measured: {energy['reason']}."]
    shown = [
        f"{name} {found['joules_per_step']:.1f} J a step ({found['power_w']:.0f} W)"
        for name, found in energy["arms"].items()
    ]
    shortest_s = min((found["metered_s"] for found in energy["arms"].values()), default=0.0)
    coarse = ""
    if shortest_s < SHORT_S:
        coarse = f" Measured over {shortest_s:.2f} s only, in which the counter's steps show: raise --iterations."
    return ["", f"Energy, by {energy['source']}: {'; '.join(shown)}.{coarse}"]


def _alone(alone: dict[str, Any]) -> list[str]:
    if "recompute_us" not in alone:
        return [f"Not measured: {alone['reason']}."]
    return _table(
        ("what", "alone ms", "with the other beside it ms", "factor"),
        [
            [
                "recompute, all units",
                _ms(alone["recompute_us"]),
                _ms(alone["recompute_beside_us"]),
                _factor(alone["recompute_slowdown"]),
            ],
            [
                "a train of transfers as long",
                _ms(alone["train_us"]),
                _ms(alone["train_beside_us"]),
                _factor(alone["communication_slowdown"]),
            ],
            [
                f"the {alone['transfers']} transfers of a microbatch (stated: {_ms(alone['stated_us'])} ms)",
                _ms(alone["communication_us"]),
                ABSENT,
                ABSENT,
            ],
        ],
    )


def _composed(record: dict[str, Any]) -> list[str]:
    heads = (
        "arm on all stages", "iteration ms, no update", "bubble", "hidden ms", "exposed ms", "tokens/s",
        "TFLOP/s a GPU", "most peak MiB", "the stage: forward ms, simulated / measured",
        "backward ms, simulated / measured",
    )  # fmt: skip
    rows = []
    for name, found in record["composed"].items():
        arm = record["arms"].get(name)
        rows.append(
            [
                name,
                _ms(found["iteration_us"]),
                f"{found['bubble_fraction']:.1%}",
                _ms(found["hidden_us"]),
                _ms(found["exposed_us"]),
                f"{found['tokens_per_s']:.0f}",
                f"{found['tflops_per_gpu']:.4g}",
                _mib(max(found["peak_bytes"])),
                f"{_ms(found['stage_forward_us'])} / {_ms(arm['forward_us']) if arm else ABSENT}",
                f"{_ms(found['stage_backward_us'])} / {_ms(arm['backward_us']) if arm else ABSENT}",
            ]
        )
    return _table(heads, rows)


def _ms(us: float) -> str:
    return f"{us / US_PER_MS:.3f}"


def _mib(nbytes: int | None) -> str:
    return ABSENT if nbytes is None else f"{nbytes / BYTES_PER_MIB:.2f}"


def _factor(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"
