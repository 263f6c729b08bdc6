"""The same model in every layout: initial weights to the bit, gradients and gradient norm to rounding."""

import pathlib
import sys

from tests.distributed.launch import run_ranks

PROGRAM = pathlib.Path(__file__).with_name("model_ranks.py")
LAYOUTS = 10


def test_every_layout_holds_the_same_model() -> None:
    results = run_ranks([sys.executable, str(PROGRAM)], 2, env={"PYTHONPATH": str(PROGRAM.parents[2])}, timeout_s=240)
    for result in results:
        assert result.returncode == 0, result.output[-3000:]
        assert result.output.count("same:") == LAYOUTS, result.output
