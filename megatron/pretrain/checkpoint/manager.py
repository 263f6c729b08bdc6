"""A run's checkpoints: save, finish what is written in the background, load. Start reading here."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron.pretrain.checkpoint.folder_lock import FolderLock
from megatron.pretrain.checkpoint.loading import Loader
from megatron.pretrain.checkpoint.ranks import Ranks
from megatron.pretrain.checkpoint.record import JSON
from megatron.pretrain.checkpoint.saving import OnSaved, Saver
from megatron.pretrain.config.groups.checkpoint import CheckpointOptions
from megatron.pretrain.training.state import Progress, TrainingState


class CheckpointManager:
    """Saves and loads the checkpoints of one run.

    Every method but `close(abort=True)` is a collective over all ranks of the job, and raises on every rank or on none.
    """

    def __init__(
        self,
        options: CheckpointOptions,
        *,
        model_identity: Mapping[str, JSON],
        run_config: Mapping[str, JSON],
        seed: int,
        on_saved: OnSaved = lambda iteration, folder: None,
    ) -> None:
        """Remember the options; touches no file. The default process group must exist.

        Args:
            options: the checkpoint flags.
            model_identity: what makes the model this model (layers, widths, tokenizer, ...), without anything that the
                parallel layout changes, such as the padded vocabulary. A checkpoint loads only where all of it agrees.
            run_config: every option of the run, written to `run.json` for people.
            seed: --seed, for random states that cannot be restored (see `random_state.seed_afresh`).
            on_saved: called on every rank once a checkpoint is complete, also one that was written in the background.

        Raises:
            TypeError: `model_identity` or `run_config` holds something that JSON has no form for.
        """
        self._options = options
        self._ranks = ranks = Ranks.of_job()
        identity, config = (json.loads(json.dumps(values)) for values in (model_identity, run_config))
        self._saver = Saver(options, identity, config, ranks, on_saved)
        self._loader = Loader(options=options, identity=identity, seed=seed, ranks=ranks)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Within, no other run that claims it may save into --save. Without --save nothing is claimed.

        Raises:
            CheckpointError: on every rank, if another run holds the folder, or it cannot be written.
        """
        if self._options.save is None:
            yield
            return
        lock = FolderLock(Path(self._options.save))
        self._ranks.first(f"claiming {self._options.save}", lock.acquire)
        try:
            yield
        finally:
            lock.release()

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint of `state` into --save, or start writing it with --async-save.

        Does nothing without --save. Waits for an earlier background save first.

        Raises:
            CheckpointError: on every rank, if any rank could not write. What was complete before is untouched.
        """
        if self._options.save is not None:
            self._saver.save(state, Path(self._options.save))

    def finalize(self, blocking: bool) -> None:
        """Publish a background save once all ranks have written it; costs nothing when there is none.

        Call it between iterations with False, and with True before the run ends.

        Raises:
            CheckpointError: on every rank, if a background writer failed.
        """
        self._saver.poll(blocking=blocking)

    def close(self, *, abort: bool = False) -> None:
        """Finish a background save. With `abort`, kill this rank's background writer instead (local, no collective)."""
        if abort:
            self._saver.abandon()
        else:
            self._saver.poll(blocking=True)

    def load(self, state: TrainingState) -> Progress | None:
        """Load the latest checkpoint of --load (or --ckpt-step) into `state`'s model, optimizer and scheduler.

        The scheduler must be as new: its own `load_state_dict` steps it forward from where it stands. On an error after
        the checks, the run's parts may be partly overwritten.

        Returns:
            Where the run continues (iteration 0 with --finetune); None without --load or where it has no checkpoint.

        Raises:
            CheckpointError: on every rank, if the checkpoint is missing (with --exit-on-missing-checkpoint), damaged,
                of another model, or does not hold what the flags ask for.
        """
        if self._options.load is None:
            return None
        return self._loader.load(state, Path(self._options.load))
