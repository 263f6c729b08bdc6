"""Read a metrics file back, also while the run that writes it goes on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron.pretrain.logs.metrics_file import METRICS_FILE_NAME
from megatron.pretrain.logs.records import EvaluationRecord, EventRecord, IterationRecord, Record, RunFacts
from megatron.pretrain.logs.wire import LineError, decode, parse
from overlap_recompute.plan.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """All that a metrics file says, in the file's order."""

    path: Path
    """The file."""

    runs: tuple[RunFacts, ...]
    """The first start and every resume; never empty."""

    iterations: tuple[IterationRecord, ...]
    """Training figures; the iteration number rises."""

    evaluations: tuple[EvaluationRecord, ...]
    """Losses on held-out data."""

    events: tuple[EventRecord, ...]
    """Checkpoints, resumes, reasons to stop."""

    training_s: float
    """Time spent in iterations that count, without evaluation and checkpoints."""

    wall_s: float
    """Time from opening the log to the last line that counts, summed over starts."""


def metrics_path(run: Path) -> Path:
    """Return the metrics file of a run given by its folder or by the file itself."""
    return run / METRICS_FILE_NAME if run.is_dir() else run


def read_metrics(run: Path) -> RunMetrics:
    """Read the metrics of a run.

    Args:
        run: a run's folder or its metrics file. A last line that is not whole (a running or a killed job) is left out.

    Raises:
        DataError: no such file, or a line of it is not a record; names the line.
    """
    path = metrics_path(run)
    timed = tuple(_records(path, _content(path)))
    records = tuple(record for _, record in timed)
    runs = tuple(record for record in records if isinstance(record, RunFacts))
    if not runs or not isinstance(records[0], RunFacts):
        raise _not_metrics(path, 1, "does not describe a run")
    return RunMetrics(
        path=path,
        runs=runs,
        iterations=tuple(record for record in records if isinstance(record, IterationRecord)),
        evaluations=tuple(record for record in records if isinstance(record, EvaluationRecord)),
        events=tuple(record for record in records if isinstance(record, EventRecord)),
        training_s=_training_s(records),
        wall_s=_wall_s(timed),
    )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"no readable metrics file at {path} ({error.strerror})",
            f"a run's folder that holds {METRICS_FILE_NAME}, or the file itself",
            "name the folder that was given to the run, or wait until its first iteration is logged",
        ) from error


def _records(path: Path, content: bytes) -> Iterator[tuple[float, Record | RunFacts]]:
    """Seconds since its log was opened, and record, of every whole line of a known kind."""
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            value = parse(line)
            record = decode(value)
        except LineError as error:
            raise _not_metrics(path, number, str(error)) from error
        if record is not None:
            time_s = value.get("time_s")
            yield (float(time_s) if isinstance(time_s, int | float) else 0.0), record


def _not_metrics(path: Path, line: int, fault: str) -> DataError:
    return DataError(
        f"line {line} of {path}: {fault}",
        "a metrics file as pretrain_gpt.py writes it",
        "name another file, or delete the line if the file was damaged",
    )


def _training_s(records: tuple[Record | RunFacts, ...]) -> float:
    """Sum of interval lengths times mean time. An interval starts at the record before it or at the last resume."""
    total_s, done = 0.0, 0
    for record in records:
        if isinstance(record, RunFacts):
            done = record.start_iteration
        if isinstance(record, IterationRecord):
            total_s += (record.iteration - done) * record.elapsed_ms / 1e3
            done = record.iteration
    return total_s


def _wall_s(timed: tuple[tuple[float, Record | RunFacts], ...]) -> float:
    total_s, latest_s = 0.0, 0.0
    for time_s, record in timed:
        if isinstance(record, RunFacts):
            total_s, latest_s = total_s + latest_s, 0.0
        latest_s = max(latest_s, time_s)
    return total_s + latest_s
