"""Marks of replays: two for each, with a name per unit and the rest in the value."""

import gc
import operator
import weakref

import pytest
import torch
from torch import nn

from overlap_recompute import ops
from overlap_recompute.runtime import Journal, Kind, Policy, ReplayError, ReplayMarks, Runtime
from overlap_recompute.runtime.marks import read_value
from tests.unit.runtime.faulty import drop, lose
from tests.unit.runtime.models import MlpBlock, Stack
from tests.unit.runtime.support import limited
from tests.unit.runtime.test_faults import raising

BEGIN, END, FAILED = int(ops.MarkKind.BEGIN), int(ops.MarkKind.END), int(ops.MarkKind.INSTANT)


def test_every_replay_is_marked_as_the_journal_has_it() -> None:
    ring, journal = ops.event_ring(), Journal()
    runtime = Runtime(
        Policy.recompute_all(), journal=journal, marks=ReplayMarks(ring, lambda key: operator.index(key) + 100)
    )
    model = Stack(MlpBlock(8), MlpBlock(8))
    runtime.attach(model, units=["blocks.*.norm", "blocks.*.act", "blocks.*.drop"])
    losses: list[torch.Tensor] = []
    for key in (0, 1):
        with runtime.microbatch(key):
            losses.append(model(torch.randn(2, 8)))
    runtime.queue.fill(limited(3))
    for loss in losses:
        loss.backward()
    runtime.step_end()
    events = list(journal.of(Kind.REPLAY_BEGIN, Kind.REPLAY_END))
    assert len(events) == 2 * 2 * 2 * 3 and {event.hidden for event in events} == {True, False}
    marks = ring.drain()
    found = [(ring.names[mark["name"]], read_value(int(mark["value"])), int(mark["kind"])) for mark in marks]
    assert found == [
        (
            f"R(L{event.layer}.{event.unit})",
            (operator.index(event.microbatch) + 100, event.call, event.hidden),  # type: ignore[call-overload]
            BEGIN if event.kind is Kind.REPLAY_BEGIN else END,
        )
        for event in events
    ]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_replay_that_fails_is_marked_as_failed(hidden: bool) -> None:
    ring = ops.event_ring()
    unit, runtime = drop(raising, marks=ReplayMarks(ring, operator.index))
    loss = lose(unit, runtime)
    with pytest.raises(ReplayError):
        runtime.queue.fill(lambda: False) if hidden else loss.backward()
    marks = ring.drain()
    assert marks["kind"].tolist() == [BEGIN, FAILED]
    assert [read_value(value) for value in marks["value"].tolist()] == [(7, 0, hidden)] * 2
    assert {ring.names[name] for name in marks["name"]} == {"R(L0.layer)"}


def test_detaching_lets_go_of_the_units_and_keeps_the_names() -> None:
    ring = ops.event_ring()
    runtime = Runtime(Policy.recompute_all(), marks=ReplayMarks(ring, operator.index))
    model = nn.Sequential(nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8))
    runtime.attach(model, units=["*"])
    with runtime.microbatch(0):
        loss = model(torch.randn(4, 8)).sum()
    loss.backward()
    runtime.step_end()
    alive = weakref.ref(model[1])
    runtime.detach()
    del model, loss
    gc.collect()
    assert alive() is None
    assert any(name.startswith("R(L") for name in ring.names)
