"""The run in the text format that Prometheus reads (version 0.0.4): base units, one block per figure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from overlap_recompute.cli.watching.alarms import ALARM_NAMES, Alarm
from overlap_recompute.cli.watching.figures import (
    BUBBLE,
    EXPOSED,
    HIDDEN,
    PREDICTED_EXPOSED,
    PREDICTED_ITERATION,
    stage_bytes,
    windows_of,
)
from overlap_recompute.cli.watching.history import Glance, Standing
from overlap_recompute.cli.watching.lines import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "overlap_recompute_"
_MS_PER_S = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    name: str
    help: str
    values: tuple[tuple[Mapping[str, str], float | None], ...]
    type: str = field(default="gauge")


def exposition(run: str, glance: Glance, alarms: Sequence[Alarm]) -> str:
    """Return the whole page. Figures that were not measured are left out; `run` becomes a label of every value."""
    lines: list[str] = []
    for family in _families(glance, alarms):
        values = [(labels, value) for labels, value in family.values if value is not None]
        if not values:
            continue
        lines.append(f"# HELP {PREFIX}{family.name} {_escape(family.help)}")
        lines.append(f"# TYPE {PREFIX}{family.name} {family.type}")
        lines += [f"{PREFIX}{family.name}{_labels({'run': run, **labels})} {_value(value)}" for labels, value in values]
    return "\n".join(lines) + "\n"


def _families(glance: Glance, alarms: Sequence[Alarm]) -> Iterator[_Family]:
    raised = {alarm.name for alarm in alarms}
    states = tuple(({"state": each.value}, float(each is glance.standing)) for each in Standing)
    yield _Family(name="run_state", help="1 for the state the run is in.", values=states)
    yield _Family(
        name="alarm",
        help="1 while the alarm stands.",
        values=tuple(({"alarm": name}, float(name in raised)) for name in ALARM_NAMES),
    )
    yield _one("last_line_age_seconds", "Time since a line arrived in the metrics file.", glance.age_s)
    yield _one("starts", "Starts and resumes that the metrics file knows.", float(len(glance.starts)))
    yield _one("unreadable_lines", "Lines of the metrics file that could not be read.", float(glance.unreadable))
    if glance.latest is not None:
        yield from _training(glance.latest)
        yield from _overlap(glance.latest)
    if glance.evaluation is not None:
        found = glance.evaluation
        yield _Family(
            name="evaluation_loss", help="Last loss on held-out data.", values=(({"split": found.split}, found.loss),)
        )


def _one(name: str, text: str, value: float | None) -> _Family:
    return _Family(name=name, help=text, values=(({}, value),))


def _seconds(value_ms: float | None) -> float | None:
    return None if value_ms is None else value_ms / _MS_PER_S


def _training(sample: Sample) -> Iterator[_Family]:
    yield _one("iteration", "Iterations done.", float(sample.iteration))
    yield _one("train_iterations", "Iteration at which the run ends.", sample.train_iters)
    yield _one("iteration_seconds", "Time per iteration.", _seconds(sample.elapsed_ms))
    yield _one("tokens_per_second", "Tokens trained on per second, whole job.", sample.tokens_per_s)
    tflops = sample.tflops_per_rank
    text = "Model FLOP/s of one rank; recompute is not counted."
    yield _one("flops_per_second_per_rank", text, None if tflops is None else tflops * 1e12)
    yield _one("loss", "Mean loss per token in nats.", sample.loss)
    yield _one("grad_norm", "Gradient norm before clipping.", sample.grad_norm)
    yield _one("learning_rate", "Learning rate of the last iteration.", sample.learning_rate)
    yield _one("skipped_iterations", "Iterations without update, last interval.", float(sample.skipped_iterations))
    yield _one(
        "nan_iterations", "Iterations with a loss that is not finite, last interval.", float(sample.nan_iterations)
    )
    peaks = (({"rank": "least"}, sample.peak_memory_min_bytes), ({"rank": "most"}, sample.peak_memory_max_bytes))
    yield _Family(name="peak_memory_bytes", help="Peak memory of the rank that needs least and most.", values=peaks)


_ACTIVATIONS = (
    "kept_bytes_per_microbatch",
    "dropped_bytes_per_microbatch",
    "kept_peak_bytes",
    "held_peak_bytes",
    "prefetched_peak_bytes",
)


def _overlap(sample: Sample) -> Iterator[_Family]:
    extra = sample.extra
    yield _one("hidden_recompute_seconds", "Recompute inside windows, per step.", _seconds(extra.get(HIDDEN)))
    yield _one(
        "exposed_recompute_seconds", "Recompute that backward waited for, per step.", _seconds(extra.get(EXPOSED))
    )
    predicted = _seconds(extra.get(PREDICTED_ITERATION))
    yield _one("predicted_iteration_seconds", "Time per iteration that the plan predicts.", predicted)
    predicted = _seconds(extra.get(PREDICTED_EXPOSED))
    yield _one("predicted_exposed_recompute_seconds", "Exposed recompute that the plan predicts.", predicted)
    yield _one("bubble_ratio", "Part of a step spent waiting for peers without recompute.", extra.get(BUBBLE))
    found = windows_of(sample)
    for name, text, of in (
        ("windows", "Windows in a step.", [each.count for each in found]),
        ("window_seconds", "Length of the windows of a step.", [_seconds(each.length_ms) for each in found]),
        ("window_filled_seconds", "Part of it spent on recompute.", [_seconds(each.filled_ms) for each in found]),
        ("window_overrun_seconds", "Recompute after its end, at most.", [_seconds(each.overrun_ms) for each in found]),
    ):
        values = tuple(({"kind": each.kind}, value) for each, value in zip(found, of, strict=True))
        yield _Family(name=name, help=text, values=values)
    values = tuple(({"figure": name.replace("_bytes", "")}, extra.get(f"overlap/{name}")) for name in _ACTIVATIONS)
    yield _Family(name="activation_bytes", help="Activations of the rank that holds most.", values=values)
    values = tuple(
        ({"stage": str(stage), "figure": name.removesuffix("_bytes")}, value)
        for stage, figures in stage_bytes(sample).items()
        for name, value in figures.items()
    )
    yield _Family(name="stage_memory_bytes", help="Memory by pipeline stage.", values=values)


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escape(value, quotes=True)}"' for name, value in labels.items()) + "}"


def _escape(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _value(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
