"""Lines of a metrics file (docs/logging.md) as values, read with patience.

A watcher must outlive what it watches: a figure that is absent, null or of the wrong type becomes None, fields that are
not known are left out, and a line that is no JSON object is counted by the caller. Only the schema is insisted on.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "pretrain-metrics/1"
"""Name and version of the format that is read here."""

EXIT_EVENT = "exit"
"""The event of a run that ends before its last iteration."""

MOST = 1e100
"""Larger figures are taken for infinite: no training has them, and sums of them would be."""
_MOST_WHOLE = 1 << 62
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Unreadable(Exception):
    """A line that is not a record."""


class OtherSchema(Exception):
    """A run line of another format; the message is what it calls itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A start or a resume."""

    start_iteration: int
    """0, or the iteration of the checkpoint."""
    world_size: int | None = None
    """Ranks."""
    device_type: str = ""
    """"cpu" or "cuda"."""
    parameters: int | None = None
    """Trained parameters of the whole model."""
    layout: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the parallel groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Figures of the iterations since the sample before it."""

    iteration: int
    """Iterations done."""
    train_iters: int | None = None
    """Where the run ends."""
    elapsed_ms: float | None = None
    """Time per iteration."""
    tokens_per_s: float | None = None
    """Whole job."""
    tflops_per_rank: float | None = None
    """Model TFLOP/s."""
    loss: float | None = None
    """Nats per token; None when every iteration was skipped."""
    grad_norm: float | None = None
    """Before clipping."""
    learning_rate: float | None = None
    """Of the last iteration."""
    skipped_iterations: int = 0
    """Iterations without update."""
    nan_iterations: int = 0
    """Iterations whose loss was not finite."""
    peak_memory_min_bytes: int | None = None
    """Rank that needed least."""
    peak_memory_max_bytes: int | None = None
    """Rank that needed most."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Figures of optional parts, such as "overlap/hidden_recompute_ms"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A loss on held-out data."""

    iteration: int
    """Iterations done."""
    split: str = ""
    """"validation" or "test"."""
    loss: float | None = None
    """Nats per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened."""

    iteration: int
    """Iterations done."""
    event: str = ""
    """Which kind."""
    message: str = ""
    """One sentence."""


Line = Start | Sample | Evaluation | Event


def read_line(line: bytes) -> Line | None:
    """Return what a line says; None for a kind that is not known here.

    Raises:
        Unreadable: it is no JSON object with a "kind", or says nothing about when.
        OtherSchema: it begins a run in a format of another name or version.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise Unreadable from None
    if not isinstance(value, dict):
        raise Unreadable
    kind = value.get("kind")
    if not isinstance(kind, str):
        raise Unreadable
    if kind == "run" and value.get("schema") != SCHEMA:
        raise OtherSchema(str(value.get("schema")))
    reader = _READERS.get(kind)
    return reader(value) if reader else None


def number(value: object) -> float | None:
    """The number that a JSON value stands for; None where there is none."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return found if abs(found) <= MOST or math.isnan(found) else math.copysign(math.inf, found)


def _whole(value: object) -> int | None:
    found = number(value)
    return int(found) if found is not None and abs(found) <= _MOST_WHOLE else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _when(value: Mapping[str, Any], name: str = "iteration") -> int:
    iteration = _whole(value.get(name))
    if iteration is None:
        raise Unreadable
    return iteration


def _numbers(value: object) -> dict[str, float]:
    items = value.items() if isinstance(value, dict) else ()
    return {name: found for name, each in items if (found := number(each)) is not None}


def _start(value: Mapping[str, Any]) -> Start:
    return Start(
        start_iteration=_when(value, "start_iteration"),
        world_size=_whole(value.get("world_size")),
        device_type=_text(value.get("device_type")),
        parameters=_whole(value.get("parameters")),
        layout={name: int(size) for name, size in _numbers(value.get("layout")).items() if math.isfinite(size)},
    )


_FLOATS = ("elapsed_ms", "tokens_per_s", "tflops_per_rank", "loss", "grad_norm", "learning_rate")
_BYTES = ("peak_memory_min_bytes", "peak_memory_max_bytes")


def _sample(value: Mapping[str, Any]) -> Sample:
    figures: dict[str, Any] = {name: number(value.get(name)) for name in _FLOATS}
    figures |= {name: _whole(value.get(name)) for name in (*_BYTES, "train_iters")}
    return Sample(
        iteration=_when(value),
        skipped_iterations=_whole(value.get("skipped_iterations")) or 0,
        nan_iterations=_whole(value.get("nan_iterations")) or 0,
        extra=_numbers(value.get("extra")),
        **figures,
    )


def _evaluation(value: Mapping[str, Any]) -> Evaluation:
    return Evaluation(iteration=_when(value), split=_text(value.get("split")), loss=number(value.get("loss")))


def _event(value: Mapping[str, Any]) -> Event:
    return Event(iteration=_when(value), event=_text(value.get("event")), message=_text(value.get("message")))


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Line]] = {
    "run": _start,
    "iteration": _sample,
    "evaluation": _evaluation,
    "event": _event,
}
