"""Loading: choose, check before any tensor is touched, fill, put back."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core import parallel_state

from megatron.pretrain.checkpoint import contents, random_state
from megatron.pretrain.checkpoint.directory import CheckpointDirectory
from megatron.pretrain.checkpoint.layout import ParallelLayout
from megatron.pretrain.checkpoint.ranks import Ranks
from megatron.pretrain.checkpoint.record import (
    JSON,
    RunRecord,
    check_contents,
    check_identity,
    check_sizes,
    read_record,
)
from megatron.pretrain.checkpoint.shard_reader import load_shards, open_checkpoint
from megatron.pretrain.config.groups.checkpoint import CheckpointOptions
from megatron.pretrain.training.state import Progress, TrainingState
from overlap_recompute.plan.errors import CheckpointError

logger = logging.getLogger(__name__)

_Found = tuple[Path, RunRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """Loads a checkpoint into a run."""

    options: CheckpointOptions
    identity: Mapping[str, JSON]
    seed: int
    ranks: Ranks

    def load(self, state: TrainingState, root: Path) -> Progress | None:
        """Load the checkpoint that the options name from `root`. Collective; see `CheckpointManager.load`."""
        started_s = time.monotonic()
        with_optimizer = not (self.options.no_load_optim or self.options.finetune)
        optimizer = contents.describe_optimizer(state.optimizer)

        def find() -> _Found | None:
            found = self._find(root)
            if found and with_optimizer:
                _check_optimizer(found, optimizer)
            return found

        found = self.ranks.first(f"looking into {root}", find)
        if found is None:
            self._log("%s has no checkpoint: starting from new weights", root)
            return None
        folder, record = found
        self._fill(folder, record, state, with_optimizer)
        self._log("loaded %s in %.1f s", folder, time.monotonic() - started_s)
        return Progress() if self.options.finetune else Progress(**record.progress)

    def _find(self, root: Path) -> _Found | None:
        """Choose a checkpoint and check all that can be checked without reading tensors."""
        directory = CheckpointDirectory(root=root)
        directory.recover()
        iteration = directory.find(self.options.ckpt_step)
        if iteration is not None:
            folder = directory.folder(iteration)
            record = read_record(folder)
            check_identity(record, self.identity, folder)
            check_sizes(folder, record)
            return folder, record
        if self.options.exit_on_missing_checkpoint:
            raise CheckpointError(
                found=f"no checkpoint in --load {root}",
                expected="one, because of --exit-on-missing-checkpoint",
                next_step="correct --load, or leave out --exit-on-missing-checkpoint to start from new weights",
            )
        return None

    def _fill(self, folder: Path, record: RunRecord, state: TrainingState, with_optimizer: bool) -> None:
        streams = self._restorable_streams(folder, record, state)
        share = sorted(record.files)[self.ranks.rank :: self.ranks.world_size]
        self.ranks.together(f"checking {folder}", lambda: check_contents(folder, record, share))
        opened = self.ranks.together(f"opening {folder}", lambda: open_checkpoint(folder, record.files))
        if with_optimizer:
            saved = opened.common[contents.SCHEDULER]
            self.ranks.together(f"checking {folder}", lambda: contents.check_schedule(saved, state.scheduler, folder))
        wanted = self.ranks.together(
            f"preparing for {folder}", lambda: contents.collect(state, with_optimizer=with_optimizer, is_loading=True)
        )
        if streams is not None:
            wanted[contents.RANDOM] = contents.shard_random_states(streams, self.ranks)
        shares = self.options.ckpt_fully_parallel_load
        share_over = parallel_state.get_data_parallel_group(with_context_parallel=True) if shares else None
        loaded = load_shards(opened, wanted, self.ranks, share_over=share_over)

        def put_back() -> None:
            contents.put_back(loaded, state, with_optimizer=with_optimizer)
            if streams is not None:
                random_state.restore(contents.unshard_random_states(loaded[contents.RANDOM]))
            elif self._wants_random_states:
                random_state.seed_afresh(self.seed, record.iteration)

        self.ranks.together(f"restoring {folder}", put_back)

    @property
    def _wants_random_states(self) -> bool:
        return not (self.options.no_load_rng or self.options.finetune)

    def _restorable_streams(
        self, folder: Path, record: RunRecord, state: TrainingState
    ) -> dict[str, torch.Tensor] | None:
        """This rank's random states as they are now, to be filled from the checkpoint; None if its do not fit."""
        if not self._wants_random_states:
            return None
        if record.random_streams is None:
            raise CheckpointError(
                found=f"no random states in {folder} (it was saved with --no-save-rng)",
                expected="the random states of every rank",
                next_step="use --no-load-rng",
            )
        reasons = ParallelLayout.of_run(state.model).differences(record.layout)
        streams = random_state.capture()
        if not reasons and record.random_streams == {name: len(value) for name, value in streams.items()}:
            return streams
        self._log(
            "random states start afresh from --seed %d and iteration %d: %s was saved with another %s",
            self.seed,
            record.iteration,
            folder,
            ", ".join(reasons) or "set of random generators",
        )
        return None

    def _log(self, message: str, *values: object) -> None:
        if self.ranks.is_first:
            logger.info(message, *values)


def _check_optimizer(found: _Found, ours: Mapping[str, JSON]) -> None:
    """Check that the checkpoint has optimizer state of a kind that this run can take.

    Raises:
        CheckpointError: it has none, or of another kind.
    """
    folder, record = found
    if record.optimizer is None:
        raise CheckpointError(
            found=f"no optimizer state in {folder} (it was saved with --no-save-optim)",
            expected="optimizer state",
            next_step="load only the weights with --no-load-optim or --finetune",
        )
    theirs = record.optimizer
    if theirs["distributed"] != ours["distributed"]:
        kind = {True: "the distributed optimizer", False: "a plain optimizer"}
        raise CheckpointError(
            found=f"state of {kind[bool(theirs['distributed'])]} in {folder}",
            expected=f"state of {kind[bool(ours['distributed'])]}",
            next_step="set --use-distributed-optimizer as it was, or load only the weights with --no-load-optim",
        )
    if theirs["expert_parallel_size"] != ours["expert_parallel_size"]:
        raise CheckpointError(
            found=f"optimizer state of --expert-model-parallel-size {theirs['expert_parallel_size']} in {folder}",
            expected=f"{ours['expert_parallel_size']}: it cannot be spread over another number of expert ranks",
            next_step="keep the size, or load only the weights with --no-load-optim",
        )
