"""The same model in every layout: initial weights to the bit, gradients and gradient norm to rounding."""

import sys

from tests.distributed.launch import run_ranks

LAYOUTS = 10


def test_every_layout_holds_the_same_model() -> None:
    results = run_ranks([sys.executable, "-m", "tests.distributed.model_ranks"], 2)
    for result in results:
        assert result.returncode == 0, result.output[-3000:]
        assert result.output.count("same:") == LAYOUTS, result.output
