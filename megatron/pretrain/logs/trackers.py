"""TensorBoard and Weights & Biases: the figures of a record under Megatron-LM's names."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.pretrain.config.groups.logging import LoggingOptions
from megatron.pretrain.logs.optional import load
from megatron.pretrain.logs.records import EvaluationRecord, EventRecord, IterationRecord, Record, RunFacts
from megatron.pretrain.logs.wire import to_json_value
from overlap_recompute.plan.errors import ConfigError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One figure of a record."""

    tag: str
    """Megatron-LM's name."""

    value: float

    by_samples: bool = False
    """TensorBoard also shows it over consumed samples, as "<tag> vs samples"."""


def scalars(record: Record, options: LoggingOptions, world_size: int) -> Iterator[Scalar]:
    """Yield what the trackers show of a record; figures that were not measured are left out."""
    tables: Mapping[type, Callable[[Any, LoggingOptions, int], Iterator[tuple[str, float | None, bool]]]] = {
        IterationRecord: _iteration_scalars,
        EvaluationRecord: _evaluation_scalars,
        EventRecord: lambda *_: iter(()),
    }
    for tag, value, by_samples in tables[type(record)](record, options, world_size):
        if value is not None:
            yield Scalar(tag=tag, value=value, by_samples=by_samples)


def _iteration_scalars(
    record: IterationRecord, options: LoggingOptions, world_size: int
) -> Iterator[tuple[str, float | None, bool]]:
    """(tag, value, also over samples) of an interval."""
    yield "learning-rate", record.learning_rate, True
    yield "batch-size", record.global_batch_size, True
    yield "lm loss", record.loss, True
    yield from ((name, loss, False) for name, loss in record.auxiliary_losses.items())
    yield "loss-scale", record.loss_scale if options.log_loss_scale_to_tensorboard else None, True
    yield "world-size", world_size if options.log_world_size_to_tensorboard else None, True
    yield "grad-norm", record.grad_norm, True
    yield "num-zeros", record.num_zeros, True
    yield "params-norm", record.params_norm, True
    yield "mem-max-allocated-bytes", record.peak_memory_max_bytes if options.log_memory_to_tensorboard else None, False
    if options.log_throughput:
        yield "throughput", record.tflops_per_rank, False
        yield "tokens-per-second", record.tokens_per_s, False
    if options.log_timers_to_tensorboard:
        yield "iteration-time", record.elapsed_ms / 1e3, False
        yield from ((f"{name}-time", time_ms / 1e3, False) for name, time_ms in record.timers_ms.items())
    yield from ((name, value, False) for name, value in record.extra.items())


def _evaluation_scalars(
    record: EvaluationRecord, options: LoggingOptions, world_size: int
) -> Iterator[tuple[str, float | None, bool]]:
    yield f"lm loss {record.split}", record.loss, True
    yield f"lm loss {record.split} ppl", record.perplexity if options.log_validation_ppl_to_tensorboard else None, True


@contextlib.contextmanager
def _opening(flag: str) -> Iterator[None]:
    """Within, a folder is made ready to write into.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{flag}, which cannot be written ({error.strerror or error})",
            "a folder that the last rank may write to, with room on the disk",
            "choose another folder or make room",
        ) from error


class TensorBoardSink:
    """Writes an event file into `--tensorboard-dir`."""

    name = "TensorBoard"

    def __init__(self, options: LoggingOptions, world_size: int) -> None:
        wanted_by = f"--tensorboard-dir {options.tensorboard_dir}"
        load("tensorboard", wanted_by=wanted_by, package="tensorboard")
        board = load("torch.utils.tensorboard", wanted_by=wanted_by, package="tensorboard")
        with _opening(wanted_by):
            self._writer = board.SummaryWriter(
                log_dir=options.tensorboard_dir, max_queue=options.tensorboard_queue_size
            )
        self._options, self._world_size = options, world_size
        self._next_iteration = 0

    def write(self, record: Record) -> None:
        """Queue the record's figures; iterations closer than `--tensorboard-log-interval` to the last are left out."""
        if isinstance(record, IterationRecord):
            if record.iteration < self._next_iteration:
                return
            self._next_iteration = record.iteration + self._options.tensorboard_log_interval
        for scalar in scalars(record, self._options, self._world_size):
            self._writer.add_scalar(scalar.tag, scalar.value, record.iteration)
            if scalar.by_samples and not isinstance(record, EventRecord):
                self._writer.add_scalar(f"{scalar.tag} vs samples", scalar.value, record.consumed_samples)

    def advance(self, iteration: int) -> None:
        """Nothing to do between records."""

    def close(self) -> None:
        """Write what is queued."""
        self._writer.close()


class WandbSink:
    """Sends figures to a Weights & Biases project, or keeps them in its folder when the service cannot be reached."""

    name = "Weights & Biases"

    def __init__(
        self, options: LoggingOptions, world_size: int, *, facts: RunFacts, save_folder: Path | None = None
    ) -> None:
        self._module = load("wandb", wanted_by=f"--wandb-project {options.wandb_project}", package="wandb")
        self._options, self._world_size = options, world_size
        default_folder = Path("wandb") if save_folder is None else save_folder / "wandb"
        folder = Path(options.wandb_save_dir or default_folder)
        with _opening(f"--wandb-save-dir {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        arguments = {
            "project": options.wandb_project,
            "entity": options.wandb_entity or None,
            "name": options.wandb_exp_name or None,
            "dir": str(folder),
            "config": to_json_value(facts),
        }
        try:
            self._run = self._module.init(**arguments)
        except self._module.Error as error:
            _logger.warning(
                "Weights & Biases cannot be reached (%s); the run is kept in %s, send it later with `wandb sync`.",
                str(error).partition("\n")[0],
                folder,
            )
            self._run = self._module.init(**arguments, mode="offline")

    def write(self, record: Record) -> None:
        """Hand over the record's figures.

        Raises:
            OSError: the client has failed.
        """
        figures = {scalar.tag: scalar.value for scalar in scalars(record, self._options, self._world_size)}
        if figures:
            self._guarded(lambda: self._run.log(figures, step=record.iteration))

    def advance(self, iteration: int) -> None:
        """Nothing to do between records."""

    def close(self) -> None:
        """Wait until everything is handed over."""
        self._guarded(self._run.finish)

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except self._module.Error as error:
            raise OSError(str(error)) from error
