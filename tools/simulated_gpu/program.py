"""The program itself, in a process whose CUDA is simulated; started by `python -m tools.simulated_gpu`."""

import os
import pathlib
import runpy
import sys

from tools.simulated_gpu.torch_ops import SimulatedOps


def main(words: list[str]) -> None:
    """Run a file or `-m module` with its arguments."""
    SimulatedOps.install()
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(pathlib.Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
