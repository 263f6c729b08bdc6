"""Counted activation bytes are those of real runs, in layouts that need several ranks (docs/memory.md)."""

import sys

import pytest

from tests.distributed.conftest import report
from tests.distributed.launch import run_ranks


@pytest.mark.parametrize("layout", ["TP2", "VPP2"])
def test_every_layer_keeps_what_was_counted(layout: str) -> None:
    results = run_ranks([sys.executable, "-m", "tests.distributed.memory_ranks", layout], 2)
    assert all(result.returncode == 0 for result in results), report(results)
    assert all("equal" in result.output for result in results)
