"""The folder that holds a run's checkpoints, laid out as Megatron-LM does, and how a save gets into it atomically.

```
SAVE/iter_0000020/                     a complete checkpoint: the name is given only after every file is on disk
SAVE/latest_checkpointed_iteration.txt "20"
SAVE/iter_0000030.saving-5f0c91aa/     a save that is under way, or that died; never read
SAVE/iter_0000020.replaced-5f0c91aa/   the former iteration 20 while a new one takes its place
```

NOTE [what a kill can leave behind]
1. Before the rename: a `.saving-` folder. The next save removes it. Its name is never used again, so that a writer
   process that outlives its run cannot write into a later save.
2. Between the two renames of a replacement: `iter_N` is absent and `iter_N.replaced-` is whole. `recover` renames it
   back.
3. After the rename, before the tracker is replaced: the checkpoint is complete, the tracker names the one before it,
   and its successor may be there as a hidden file, which the next save removes.
"""

import logging
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from megatron.pretrain.checkpoint.record import RECORD_NAME
from overlap_recompute.plan.errors import CheckpointError
from overlap_recompute.plan.files import sync_folder, write_text_file

TRACKER_NAME = "latest_checkpointed_iteration.txt"

_COMPLETE = re.compile(r"iter_(\d{7,})")
_TRANSIENT = re.compile(r"iter_(\d{7,})\.(saving|replaced)-[0-9a-f]{8}")

logger = logging.getLogger(__name__)


def replace_text(path: Path, text: str) -> None:
    """Replace a small text file so that a reader sees either the old or the new content, even after a power cut."""
    write_text_file(path, text)
    sync_folder(path.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDirectory:
    """A `--save` or `--load` folder. One run at a time may save into it; any number may read."""

    root: Path

    def folder(self, iteration: int) -> Path:
        """Where the complete checkpoint of an iteration is, or would be."""
        return self.root / f"iter_{iteration:07d}"

    def iterations(self) -> list[int]:
        """Iterations with a complete checkpoint, in ascending order; empty when there is no folder."""
        if not self.root.is_dir():
            return []
        matches = ((_COMPLETE.fullmatch(path.name), path) for path in self.root.iterdir())
        return sorted(int(match[1]) for match, path in matches if match and (path / RECORD_NAME).is_file())

    def tracked(self) -> int | None:
        """The iteration that the tracker file names; None when there is no tracker file.

        Raises:
            CheckpointError: the tracker file holds something else.
        """
        path = self.root / TRACKER_NAME
        try:
            text = path.read_text(errors="replace").strip()
        except FileNotFoundError:
            return None
        if not (text.isascii() and text.isdigit()):
            raise CheckpointError(
                found=f"{text[:40]!r} in {path}",
                expected="the number of an iteration",
                next_step=_advise(self.iterations()),
            )
        return int(text)

    def find(self, step: int | None) -> int | None:
        """The iteration to load: `step` (--ckpt-step) if given, else the tracked one, else the newest complete one.

        Returns:
            None when the folder has no checkpoint at all.

        Raises:
            CheckpointError: the wanted checkpoint is missing or incomplete; the message offers the complete ones.
        """
        complete = self.iterations()
        wanted = step if step is not None else self.tracked()
        if wanted is None:
            if complete:
                logger.warning("%s has no %s: taking iteration %d", self.root, TRACKER_NAME, complete[-1])
            return complete[-1] if complete else None
        if wanted not in complete:
            source = f"--ckpt-step {wanted}" if step is not None else f"iteration {wanted} in {TRACKER_NAME}"
            raise CheckpointError(
                found=f"{source}, but no complete checkpoint in {self.folder(wanted)}",
                expected=f"one of the complete checkpoints of {self.root}: {complete or 'there is none'}",
                next_step=_advise(complete),
            )
        if complete[-1] > wanted:
            logger.warning("loading iteration %d of %s; iteration %d is complete too", wanted, self.root, complete[-1])
        return wanted

    def stage(self, iteration: int) -> Path:
        """Tidy up after dead saves and make the empty folder that a new save is written into."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.recover()
        self._sweep()
        staging = self._transient(iteration, "saving")
        staging.mkdir()
        return staging

    def publish(self, staging: Path, iteration: int) -> None:
        """Give a staged save its final name, then let the tracker name it. Everything in it must be synced already."""
        sync_folder(staging)
        final = self.folder(iteration)
        former = self._transient(iteration, "replaced") if final.exists() else None
        if former:
            final.rename(former)
        staging.rename(final)
        sync_folder(self.root)
        replace_text(self.root / TRACKER_NAME, str(iteration))
        if former:
            shutil.rmtree(former, ignore_errors=True)

    def recover(self) -> None:
        """Undo a replacement that was interrupted (see NOTE [what a kill can leave behind], 2)."""
        for path, iteration in self._transients("replaced"):
            if not self.folder(iteration).exists():
                logger.warning("restoring %s from an interrupted save", self.folder(iteration))
                path.rename(self.folder(iteration))

    def _sweep(self) -> None:
        for kind in ("saving", "replaced"):
            for path, _ in self._transients(kind):
                logger.info("removing %s, left over from a save that did not finish", path)
                shutil.rmtree(path, ignore_errors=True)
        for path in self.root.glob(f".{TRACKER_NAME}.*.tmp"):
            path.unlink(missing_ok=True)

    def _transient(self, iteration: int, kind: str) -> Path:
        return self.root / f"{self.folder(iteration).name}.{kind}-{secrets.token_hex(4)}"

    def _transients(self, kind: str) -> list[tuple[Path, int]]:
        if not self.root.is_dir():
            return []
        matches = ((path, _TRANSIENT.fullmatch(path.name)) for path in self.root.iterdir())
        return [(path, int(match[1])) for path, match in matches if match and match[2] == kind]


def _advise(complete: list[int]) -> str:
    return f"choose --ckpt-step {complete[-1]} (the newest)" if complete else "choose another folder with --load"
