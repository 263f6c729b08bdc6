"""The end of a window: a unit that would run far beyond it is left for later, unless that is known to be dear."""

import pytest
import torch

from overlap_recompute.runtime import Fill, Policy, Runtime, Stop
from overlap_recompute.runtime.calls import UnitCall
from tests.unit.runtime.models import MlpBlock, Stack
from tests.unit.runtime.support import attached, limited, never

UNITS = ["blocks.*.fc1"]
MS = 1_000_000
LENGTH_NS = 10 * MS
"""What a replay is said to take."""


def next_call(runtime: Runtime) -> UnitCall:
    call = runtime.queue.upcoming()
    assert call is not None
    return call


@pytest.mark.parametrize(
    ("left_ms", "late_share", "starts"),
    [(10, 0.25, True), (8, 0.25, True), (7, 0.25, False), (-1, 0.9, False), (7, 0.9, True), (0, 1.0, True)],
)
def test_a_unit_starts_where_that_costs_less_than_the_risk(left_ms: int, late_share: float, starts: bool) -> None:
    model = Stack(*(MlpBlock(8) for _ in range(3)))
    with attached(model, Policy.recompute_all(), UNITS) as runtime:
        with runtime.microbatch(0):
            loss = model(torch.randn(2, 8, requires_grad=True)).sum()
        runtime.queue.fill(limited(1))
        unit = next_call(runtime).unit
        unit.replay_ns, unit.late_share = LENGTH_NS, late_share
        found = runtime.queue.fill(limited(1), left_ns=lambda: left_ms * MS)
        assert found.units == starts
        assert found.stop is (Stop.CLOSED if starts else Stop.SHORT)
        loss.backward()
        runtime.step_end()


def test_the_unit_that_backward_needs_at_once_always_starts() -> None:
    model = Stack(*(MlpBlock(8) for _ in range(2)))
    with attached(model, Policy.recompute_all(), UNITS) as runtime:
        with runtime.microbatch(0):
            loss = model(torch.randn(2, 8, requires_grad=True)).sum()
        next_call(runtime).unit.replay_ns = LENGTH_NS
        assert runtime.queue.fill(limited(1), left_ns=lambda: 0).units == 1
        loss.backward()
        runtime.step_end()


def test_what_is_left_for_later_and_then_late_is_left_less_often() -> None:
    """Backward waits for it step after step until a window starts it all the same; one that comes in time helps."""
    model = Stack(*(MlpBlock(8) for _ in range(2)))
    with attached(model, Policy.recompute_all(), UNITS) as runtime:

        def step(second_window: bool) -> tuple[Fill, float]:
            with runtime.microbatch(0):
                loss = model(torch.randn(2, 8, requires_grad=True)).sum()
            runtime.queue.fill(limited(1))
            unit = next_call(runtime).unit
            unit.replay_ns = LENGTH_NS
            found = runtime.queue.fill(never, left_ns=lambda: 3 * MS)
            if second_window:
                runtime.queue.fill(never)
            loss.backward()
            runtime.step_end()
            return found, unit.late_share

        found, share = step(second_window=True)
        assert found.units == 0 and share < 0.25
        steps = 0
        while step(second_window=False)[0].units == 0:
            steps += 1
        assert 3 <= steps <= 10, "0.7 of the unit would run over: it starts when more than 0.7 were late"
