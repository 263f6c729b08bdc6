"""The passes stand in the order in which Megatron-Core's own schedules run them."""

import pytest

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.schedules import pipeline_schedule
from overlap_recompute.schedules.builders import group_order

from .stock import schedules, stock_order

pytestmark = pytest.mark.filterwarnings("ignore:full scope is deprecated")  # stock's, about its own default

PLAIN = [(pp, microbatches) for pp in (1, 2, 3, 4, 8) for microbatches in (1, 2, 3, 5, 8, 13)]
INTERLEAVED = [
    (pp, vpp, microbatches, group)
    for pp in (2, 3, 4)
    for vpp in (2, 3)
    for microbatches in (pp, 2 * pp, 2 * pp + 1, 3 * pp, 4 * pp - 1)
    for group in (None, pp, pp + 1, 2 * pp - 1, microbatches)
]


@pytest.mark.parametrize("forward_only", [False, True])
def test_1f1b_runs_as_stock_does(forward_only: bool) -> None:
    for pp, microbatches in PLAIN:
        grid = pipeline_schedule(pp, 1, microbatches, forward_only=forward_only)
        for rank, row in enumerate(grid):
            stock = stock_order(pp, 1, microbatches, rank, group_size=None, forward_only=forward_only)
            assert row == stock, (pp, microbatches, rank)


@pytest.mark.parametrize("forward_only", [False, True])
def test_interleaved_1f1b_runs_as_stock_does_and_is_refused_where_stock_refuses(forward_only: bool) -> None:
    refused = run = 0
    for pp, vpp, microbatches, group in INTERLEAVED:
        sizes = (pp, vpp, microbatches)
        try:
            grid = pipeline_schedule(*sizes, group_size=group, forward_only=forward_only)
        except ConfigError:
            refused += 1
            with pytest.raises((ValueError, RuntimeError), match="icro"):
                stock_order(*sizes, 0, group_size=group, forward_only=forward_only)
            continue
        run += 1
        for rank, row in enumerate(grid):
            stock = stock_order(*sizes, rank, group_size=group, forward_only=forward_only)
            assert row == stock, (*sizes, group, rank)
    assert run > 40
    assert refused > 40


def test_the_order_of_a_chunk_and_its_microbatches_is_stocks_schedule_table() -> None:
    for chunks in (2, 3, 4):
        for microbatches in range(2, 20):
            for group in range(2, microbatches + 1):
                table = schedules.get_schedule_table(microbatches, chunks, group)
                assert group_order(microbatches, chunks, group) == tuple((chunk, mb) for mb, chunk in table)
