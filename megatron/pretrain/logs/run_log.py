"""The log of a run: every record goes to every sink, and a sink that fails does not end the run.

NOTE [ who writes ]
The last rank writes, as in Megatron-LM: the loss is known on the last pipeline stage, and the last rank is always on
it. All other ranks have a log without sinks. The metrics file therefore lies on the last rank's machine, so a job of
several machines gives it, like checkpoints, a shared folder.

NOTE [ metrics are not worth a run ]
What cannot be opened at the start is an error, for nothing is lost yet. A write that fails later (disk full, service
away) costs its record only: the first failure of a sink is logged as a warning, later records are still tried, and
`close` says how many were lost.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Protocol

from megatron.pretrain.config import LoggingOptions, PretrainConfig, World
from megatron.pretrain.logs.console import LineSink, ProgressBarSink, wants_progress_bar
from megatron.pretrain.logs.metrics_file import METRICS_FILE_NAME, open_metrics_file
from megatron.pretrain.logs.optional import require
from megatron.pretrain.logs.records import Record, RunFacts
from megatron.pretrain.logs.trackers import TensorBoardSink, WandbSink
from megatron.pretrain.logs.wire import to_json_value

_logger = logging.getLogger(__name__)

VERSIONED_PACKAGES = ("megatron-core", "torch", "transformer-engine", "overlap-recompute", "numpy", "tokenizers")


class Sink(Protocol):
    """Where records go."""

    @property
    def name(self) -> str:
        """What to call it in a warning."""

    def write(self, record: Record) -> None:
        """Take one record. An OSError means that the record is lost and the next one may still be tried."""

    def advance(self, iteration: int) -> None:
        """Note that an iteration is done. Called after each one, so it must not cost anything."""

    def close(self) -> None:
        """Write what is pending."""


class RunLog:
    """Takes the records of a run; see the NOTEs above. Use as a context manager or call `close`.

    Args:
        sinks: where records go; none on ranks that do not write.
    """

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._sinks = tuple(sinks)
        self._lost = [0] * len(self._sinks)
        self._closed = False

    @property
    def writes(self) -> bool:
        """Whether this rank's records go anywhere."""
        return bool(self._sinks)

    def record(self, record: Record) -> None:
        """Give a record to every sink."""
        for index, sink in enumerate(self._sinks):
            try:
                sink.write(record)
            except OSError as error:
                self._lost[index] += 1
                if self._lost[index] == 1:
                    _logger.warning(
                        "%s: a record of iteration %d is lost (%s); training goes on, later records are still tried, "
                        "and their loss is only counted.",
                        sink.name,
                        record.iteration,
                        error,
                    )

    def advance(self, iteration: int) -> None:
        """Note that an iteration is done."""
        for sink in self._sinks:
            sink.advance(iteration)

    def close(self) -> None:
        """Close every sink and say what was lost. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        for index in reversed(range(len(self._sinks))):  # the bar before the lines, so that what follows is plain
            sink, lost = self._sinks[index], self._lost[index]
            try:
                sink.close()
            except OSError as error:
                _logger.warning("%s: could not be closed (%s); its last records may be missing.", sink.name, error)
            if lost:
                _logger.warning("%s: %d record(s) of this run could not be written.", sink.name, lost)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def check_log_packages(options: LoggingOptions) -> None:
    """Check, without loading them, that the packages are there that the flags ask for.

    Raises:
        ConfigError: names the flag and the package.
    """
    wanted = (
        ("tensorboard", "--tensorboard-dir", options.tensorboard_dir),
        ("wandb", "--wandb-project", options.wandb_project),
        ("tqdm", "--progress-bar", "on" if options.progress_bar == "on" else None),
    )
    for package, flag, value in wanted:
        if value:
            require(package, wanted_by=f"{flag} {value}", package=package)


def open_run_log(
    options: LoggingOptions, world: World, facts: RunFacts, *, save_folder: Path | None = None, train_iters: int
) -> RunLog:
    """Open the log of this rank: the sinks that the options ask for on the last rank, none on others.

    Args:
        options: the logging group.
        world: this rank among all.
        facts: the run; `facts.start_iteration` decides what of an earlier metrics file stays (see `metrics_file`).
        save_folder: `--save`; where the metrics file goes without `--metrics-file`, if at all.
        train_iters: where the bar ends.

    Raises:
        ConfigError: a package is missing or the metrics file cannot be written.
    """
    check_log_packages(options)
    if world.rank != world.world_size - 1:
        return RunLog()
    sinks: list[Sink] = [LineSink(device_type=facts.device_type, throughput=options.log_throughput)]
    path = metrics_file_of(options, save_folder)
    if path is not None:
        sinks.append(open_metrics_file(path, facts))
    if options.tensorboard_dir:
        sinks.append(TensorBoardSink(options, world.world_size))
    if options.wandb_project:
        sinks.append(WandbSink(options, world.world_size, facts=facts, save_folder=save_folder))
    if wants_progress_bar(options.progress_bar):
        sinks.append(ProgressBarSink(train_iters=train_iters, start_iteration=facts.start_iteration))
    return RunLog(sinks)


def metrics_file_of(options: LoggingOptions, save_folder: Path | None) -> Path | None:
    """Where the metrics file goes: `--metrics-file`, else metrics.jsonl in the `--save` folder, else nowhere."""
    if options.metrics_file is not None:
        return Path(options.metrics_file)
    return None if save_folder is None else save_folder / METRICS_FILE_NAME


def facts_of(
    config: PretrainConfig,
    *,
    start_iteration: int,
    device_type: str,
    argv: Sequence[str] = (),
    parameters: int | None = None,
    flops_per_iteration: float | None = None,
) -> RunFacts:
    """Gather what the metrics file says about a run; the place of this process (`config.world`) is left out."""
    groups = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "world"}
    values = to_json_value(groups)
    assert isinstance(values, dict)
    parallel = config.parallel
    return RunFacts(
        start_iteration=start_iteration,
        sequence_length=config.model.seq_length,
        world_size=config.world.world_size,
        device_type=device_type,
        parameters=parameters,
        flops_per_iteration=flops_per_iteration,
        argv=tuple(argv),
        config=values,
        layout={
            "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
            "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
            "virtual_pipeline_model_parallel_size": config.virtual_pipeline_size or 1,
            "context_parallel_size": parallel.context_parallel_size,
            "expert_model_parallel_size": parallel.expert_model_parallel_size,
            "data_parallel_size": config.data_parallel_size,
        },
        versions=package_versions(),
    )


def package_versions() -> Mapping[str, str]:
    """Versions of Python and of the installed packages that decide a result."""
    found = {"python": python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
