"""What a run came to, for a person and for a program, from its metrics file alone."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron.pretrain.logs.metrics_reader import RunMetrics
from megatron.pretrain.logs.records import CHECKPOINT_SAVED, EXIT, EvaluationRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The figures of a run. Losses are nats per token; None where nothing was measured."""

    iterations: int
    """Iterations done."""

    train_iters: int
    """Iterations asked for."""

    starts: int
    """How often the run was started: 1 plus resumes."""

    tokens: int
    """Tokens trained on."""

    parameters: int | None
    """Trained parameters."""

    world_size: int
    """Ranks of the latest start."""

    layout: Mapping[str, int]
    """Sizes of the parallel groups of the latest start."""

    training_s: float
    """Time in iterations."""

    wall_s: float
    """Time in all, evaluation and checkpoints included, from the first line of each start to its last."""

    tokens_per_s: float | None
    """Tokens per second in iterations, median over the log."""

    tflops_per_rank: float | None
    """Model TFLOP/s of one rank, median over the log."""

    first_loss: float | None
    """Training loss of the first interval."""

    last_loss: float | None
    """Training loss of the last interval."""

    best_loss: float | None
    """Lowest training loss."""

    validation_losses: Mapping[str, float]
    """Latest loss by split."""

    skipped_iterations: int
    """Iterations without an update."""

    nan_iterations: int
    """Iterations whose loss was not finite."""

    peak_memory_bytes: int | None
    """Peak memory of the rank that needed most."""

    checkpoint: str | None
    """Folder of the latest checkpoint."""

    exit_reason: str | None
    """Why the run stopped early."""

    metrics_path: str
    """The metrics file."""

    plot_path: str | None = None
    """The picture of the loss, when there is one."""

    yardsticks: Mapping[str, float] = field(default_factory=dict)
    """Losses to compare with, such as the entropy of the corpus' unigrams."""


def summarize(
    metrics: RunMetrics, *, yardsticks: Mapping[str, float] | None = None, plot_path: Path | None = None
) -> RunSummary:
    """Add up a run.

    Args:
        metrics: what its metrics file says.
        yardsticks: losses to compare the last one with, by name, in nats per token.
        plot_path: the picture to name, if one was drawn.
    """
    records, latest = metrics.iterations, metrics.runs[-1]
    losses = [record.loss for record in records if record.loss is not None and math.isfinite(record.loss)]
    checkpoints = [event for event in metrics.events if event.event == CHECKPOINT_SAVED]
    peaks = [record.peak_memory_max_bytes for record in records if record.peak_memory_max_bytes is not None]
    samples = records[-1].consumed_samples if records else 0
    return RunSummary(
        iterations=records[-1].iteration if records else latest.start_iteration,
        train_iters=records[-1].train_iters if records else 0,
        starts=len(metrics.runs),
        tokens=samples * latest.sequence_length,
        parameters=latest.parameters,
        world_size=latest.world_size,
        layout=latest.layout,
        training_s=metrics.training_s,
        wall_s=metrics.wall_s,
        tokens_per_s=_median([record.tokens_per_s for record in records]),
        tflops_per_rank=_median([record.tflops_per_rank for record in records]),
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        best_loss=min(losses, default=None),
        validation_losses=_latest_by_split(metrics.evaluations),
        skipped_iterations=sum(record.skipped_iterations for record in records),
        nan_iterations=sum(record.nan_iterations for record in records),
        peak_memory_bytes=max(peaks, default=None),
        checkpoint=str(checkpoints[-1].details.get("path", "")) or None if checkpoints else None,
        exit_reason=_exit_reason(metrics),
        metrics_path=str(metrics.path),
        plot_path=None if plot_path is None else str(plot_path),
        yardsticks=dict(yardsticks or {}),
    )


def render(summary: RunSummary) -> str:
    """Return the summary as text for a terminal, one figure a line, without a line end."""
    rows = [(name, text) for name, text in _rows(summary) if text]
    width = max(len(name) for name, _ in rows)
    return "\n".join([_heading(summary), *(f"  {name:<{width}}  {text}" for name, text in rows)])


def _heading(summary: RunSummary) -> str:
    complete = summary.iterations >= summary.train_iters > 0
    done = f"{summary.iterations:,} of {summary.train_iters:,} iterations"
    resumes = f", started {summary.starts} times" if summary.starts > 1 else ""
    return f"Training {'finished' if complete else 'stopped'}: {done}{resumes}"


def _rows(summary: RunSummary) -> Iterator[tuple[str, str]]:
    """(name, text) of every line; lines of empty text are left out."""
    yield "stopped because", summary.exit_reason or ""
    yield "model", _count(summary.parameters, "parameters")
    yield "ranks", f"{summary.world_size}{_layout(summary.layout)}"
    yield "tokens seen", f"{summary.tokens:,}"
    yield "time", f"{_duration(summary.training_s)} in iterations, {_duration(summary.wall_s)} in all"
    if summary.tokens_per_s is not None:
        yield "speed", f"{summary.tokens_per_s:,.0f} tokens/s, {summary.tflops_per_rank:.3g} model TFLOP/s per rank"
    if summary.first_loss is not None:
        fall = f"{summary.first_loss:.4f} -> {summary.last_loss:.4f} nats per token"
        yield "training loss", f"{fall} (lowest {summary.best_loss:.4f})"
    else:
        yield "training loss", "none logged that is finite"
    yield from ((f"{split} loss", f"{loss:.4f} nats per token") for split, loss in summary.validation_losses.items())
    yield from ((name, _comparison(summary, value)) for name, value in summary.yardsticks.items())
    yield "skipped", f"{summary.skipped_iterations} iterations" if summary.skipped_iterations else ""
    yield "not finite", f"{summary.nan_iterations} iterations" if summary.nan_iterations else ""
    if summary.peak_memory_bytes is not None:
        yield "peak memory", f"{summary.peak_memory_bytes / 2**20:,.0f} MiB on the rank that needed most"
    yield "checkpoint", summary.checkpoint or "none saved"
    yield "metrics", summary.metrics_path
    yield "plot", summary.plot_path or ""


def _comparison(summary: RunSummary, yardstick: float) -> str:
    """The yardstick, and the last loss against it: on held-out data where there is one, for that cannot be learnt."""
    loss = summary.validation_losses.get("validation", summary.last_loss)
    if loss is None:
        return f"{yardstick:.4f}"
    which = "validation" if "validation" in summary.validation_losses else "training"
    side = "below" if loss < yardstick else "NOT below"
    return f"{yardstick:.4f}; the {which} loss is {side} it ({loss - yardstick:+.4f})"


def _layout(layout: Mapping[str, int]) -> str:
    short = {
        "tensor_model_parallel_size": "TP",
        "pipeline_model_parallel_size": "PP",
        "virtual_pipeline_model_parallel_size": "VPP",
        "context_parallel_size": "CP",
        "expert_model_parallel_size": "EP",
        "data_parallel_size": "DP",
    }
    parts = [f"{short.get(name, name)}={size}" for name, size in layout.items() if size > 1]
    return f" ({', '.join(parts)})" if parts else ""


def _count(number: int | None, unit: str) -> str:
    if number is None:
        return ""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            return f"{number / limit:.1f} {letter} {unit}"
    return f"{number} {unit}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _latest_by_split(evaluations: Sequence[EvaluationRecord]) -> dict[str, float]:
    return {record.split: record.loss for record in evaluations}


def _exit_reason(metrics: RunMetrics) -> str | None:
    """Why the run stopped, unless it has gone on or come to its end since."""
    exits = [event for event in metrics.events if event.event == EXIT]
    latest = metrics.iterations[-1] if metrics.iterations else None
    if not exits or (latest and (latest.iteration >= latest.train_iters or latest.iteration > exits[-1].iteration)):
        return None
    return exits[-1].message
