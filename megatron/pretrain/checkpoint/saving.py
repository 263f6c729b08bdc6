"""Saving: stage, write on every rank, agree, publish."""

import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import megatron.core
import torch
from megatron.core import parallel_state

from megatron.pretrain.checkpoint import contents, random_state
from megatron.pretrain.checkpoint.background import BackgroundWriter
from megatron.pretrain.checkpoint.directory import CheckpointDirectory, replace_text
from megatron.pretrain.checkpoint.layout import ParallelLayout
from megatron.pretrain.checkpoint.ranks import Ranks
from megatron.pretrain.checkpoint.record import JSON, RECORD_NAME, RunRecord, list_files
from megatron.pretrain.checkpoint.shard_writer import ShardWriter, Written, plan_save
from megatron.pretrain.config.groups.checkpoint import CheckpointOptions
from megatron.pretrain.training.state import TrainingState
from overlap_recompute.plan.errors import UserError

logger = logging.getLogger(__name__)
OnSaved = Callable[[int, Path], None]
"""Called on every rank with the iteration and the folder of a checkpoint that is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Save:
    """A save under way."""

    directory: CheckpointDirectory
    staging: Path
    record: RunRecord
    started_s: float


class Saver:
    """Writes the checkpoints of one run, one at a time. Every method but `abandon` is a collective."""

    def __init__(
        self,
        options: CheckpointOptions,
        identity: Mapping[str, JSON],
        config: Mapping[str, JSON],
        ranks: Ranks,
        on_saved: OnSaved,
    ) -> None:
        self._options = options
        self._on_saved = on_saved
        self._identity = identity
        self._config = config
        self._ranks = ranks
        self._background = BackgroundWriter()
        self._validated = False

    def save(self, state: TrainingState, root: Path) -> None:
        """Write a checkpoint into `root`, or start writing it with --async-save; see `CheckpointManager.save`."""
        self.poll(blocking=True)
        started_s = time.monotonic()
        directory = CheckpointDirectory(root=root)
        iteration = state.progress.iteration
        staging = self._ranks.first(f"preparing to save iteration {iteration}", lambda: directory.stage(iteration))
        try:
            record, writer = self._plan(state, staging)
            save = _Save(directory=directory, staging=staging, record=record, started_s=started_s)
            if self._options.async_save:
                self._start(save, writer)
            else:
                self._complete(save, writer, writer.write)
        except UserError:
            self.abandon()
            self._discard(staging)
            raise

    def poll(self, *, blocking: bool) -> None:
        """Publish a background save once every rank has written its part."""
        self._background.poll(blocking=blocking)

    def abandon(self) -> None:
        """Kill this rank's background writer, if any. Local."""
        self._background.abandon()

    def _plan(self, state: TrainingState, staging: Path) -> tuple[RunRecord, ShardWriter]:
        options, with_optimizer = self._options, not self._options.no_save_optim
        step = f"collecting iteration {state.progress.iteration}"
        streams = None if options.no_save_rng else self._ranks.together(step, random_state.capture)
        state_dict = self._ranks.together(
            step, lambda: contents.collect(state, with_optimizer=with_optimizer, is_loading=False)
        )
        if streams is not None:
            state_dict[contents.RANDOM] = contents.shard_random_states(streams, self._ranks)
        shares = options.ckpt_fully_parallel_save
        writer = plan_save(
            state_dict,
            staging,
            self._ranks,
            share_over=parallel_state.get_data_parallel_group(with_context_parallel=True) if shares else None,
            in_background=options.async_save,
            validate=not self._validated,
        )
        self._validated = True
        record = RunRecord(
            progress=asdict(state.progress),
            identity=self._identity,
            config=self._config,
            layout=ParallelLayout.of_run(state.model).to_json(),
            optimizer=contents.describe_optimizer(state.optimizer) if with_optimizer else None,
            random_streams=None if streams is None else {name: len(value) for name, value in streams.items()},
            versions=_versions(),
            saved_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        return record, writer

    def _start(self, save: _Save, writer: ShardWriter) -> None:
        def complete(collect: Callable[[], Written]) -> None:
            try:
                self._complete(save, writer, collect)
            except UserError:
                self._discard(save.staging)
                raise

        step = f"starting to save iteration {save.record.iteration}"
        self._ranks.together(step, lambda: self._background.start(writer.write, complete))

    def _complete(self, save: _Save, writer: ShardWriter, collect: Callable[[], Written]) -> None:
        """Learn from every rank what it wrote; if all did, publish. The only place where a checkpoint gets its name."""

        def publish(parts: list[Written]) -> None:
            checksums = writer.finish(parts)
            files = list_files(save.staging)
            record = replace(save.record, files=files, checksums=checksums)
            replace_text(save.staging / RECORD_NAME, record.to_json())
            save.directory.publish(save.staging, record.iteration)
            logger.info(
                "saved iteration %d to %s: %.1f MB in %.1f s",
                record.iteration,
                save.directory.folder(record.iteration),
                sum(files.values()) / 1e6,
                time.monotonic() - save.started_s,
            )

        self._ranks.gather(f"saving iteration {save.record.iteration}", collect, publish)
        self._on_saved(save.record.iteration, save.directory.folder(save.record.iteration))

    def _discard(self, staging: Path) -> None:
        if self._ranks.is_first:
            shutil.rmtree(staging, ignore_errors=True)


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "megatron_core": megatron.core.__version__,
    }
