#!/usr/bin/env python3
"""Say how far a run is: run_progress.py FOLDER prints "ITERATION TOTAL" of its last complete checkpoint, or "0 0"."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.pretrain.checkpoint.directory import CheckpointDirectory
from megatron.pretrain.checkpoint.record import read_record
from overlap_recompute.plan.errors import UserError


def progress(folder: Path) -> tuple[int, int]:
    """Iterations done, and iterations of the whole run as its flags say; (0, 0) without a checkpoint.

    Raises:
        CheckpointError: the folder's tracker or the record of the checkpoint is damaged.
    """
    directory = CheckpointDirectory(root=folder)
    iteration = directory.find(None)
    if iteration is None:
        return 0, 0
    training = read_record(directory.folder(iteration)).config["training"]
    assert isinstance(training, dict)
    total = training["train_iters"]
    assert isinstance(total, int)
    return iteration, total


def main(arguments: list[str]) -> int:
    """Print the progress."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(*progress(Path(arguments[0])))
    except UserError as error:
        print(f"run_progress.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
