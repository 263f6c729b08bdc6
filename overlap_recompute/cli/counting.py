"""Has a model counted by the package that knows Megatron-Core, in a process of its own: this one imports no torch."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from overlap_recompute.plan.codec import read_record
from overlap_recompute.plan.counted import COUNTED_VERSION, CountedModel
from overlap_recompute.plan.errors import UserError

MODULE = "megatron.overlap.counting"
USER_ERROR = 2
_LAST_LINES = 12


def count_model(flags: Sequence[str], *, device: str, world_size: int = 0) -> CountedModel:
    """The sizes of the model that these flags of `pretrain_gpt.py` describe.

    Args:
        flags: of the trainer.
        device: whose kernels are counted, cpu or cuda.
        world_size: ranks of the run; 0: the fewest that the layout takes.

    Raises:
        UserError: flags that the trainer refuses, or counting failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counted.json"
        options = ["--output", str(path), "--device", device, "--world-size", str(world_size)]
        command = [sys.executable, "-m", MODULE, *options, "--", *flags]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode == USER_ERROR:
            raise _relayed(done.stdout, done.stderr)
        if done.returncode:
            raise _failed(done.stderr)
        return read_record(path, CountedModel, COUNTED_VERSION)


def _relayed(text: str, log: str) -> UserError:
    try:
        words = json.loads(text.splitlines()[-1])
        return UserError(words["found"], words["expected"], words["next_step"])
    except (ValueError, KeyError, IndexError):
        return _failed(log)


def _failed(log: str) -> UserError:
    last = "\n".join(log.splitlines()[-_LAST_LINES:])
    return UserError(
        f"a model that could not be counted:\n{last}\n",
        "a model that builds and runs",
        "try the same flags with pretrain_gpt.py; overlap-recompute doctor shows what is installed",
    )
