"""The journal proves the order: each dropped unit is replayed once per microbatch, before its first use."""

from collections import Counter

import pytest
import torch
from torch.nn.functional import gelu
from torch.utils.flop_counter import FlopCounterMode

from overlap_recompute.runtime import Journal, Kind, Policy, Runtime
from tests.unit.runtime.models import EXAMPLES, Example, MlpBlock, Stack
from tests.unit.runtime.support import attached, limited, never, runtime_step

UNITS = ["blocks.*.norm", "blocks.*.fc1", "blocks.*.act", "blocks.*.drop"]


@pytest.mark.parametrize("fill", [False, True], ids=["on demand", "filled"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_each_dropped_unit_is_replayed_once_and_before_its_use(example: Example, fill: bool) -> None:
    model, journal = example.make(), Journal()
    inputs = [torch.randn(example.shape) for _ in range(3)]
    units = [f"blocks.*.{unit}" for unit in example.units]
    with attached(model, Policy.recompute_all(), units, journal=journal) as runtime:
        runtime_step(model, inputs, runtime, fill=fill)
    dropped = Counter(event[1:5] for event in journal.of(Kind.DROP))
    assert len(dropped) == 3 * 3 * len(example.units)
    assert set(dropped.values()) == {1}
    replayed: dict[object, int] = {}
    for position, event in enumerate(journal.events):
        call = event[1:5]
        if event.kind is Kind.REPLAY_END:
            assert call not in replayed, f"{call} replayed twice"
            replayed[call] = position
        if event.kind is Kind.USE:
            assert call in replayed, f"{call} used before it was replayed"
    used = {event[1:5] for event in journal.of(Kind.USE)}
    # What only a hidden replay reads is not used by backward; on demand every replay is.
    assert used <= set(replayed) if fill else used == set(replayed)
    released = Counter(event[1:5] for event in journal.of(Kind.RELEASE))
    assert released == dropped
    assert any(event.hidden for event in journal.of(Kind.REPLAY_END)) == fill


def test_the_last_linear_of_a_block_is_not_replayed_because_nobody_saves_its_output() -> None:
    model, journal = Stack(MlpBlock(8), MlpBlock(8)), Journal()
    with attached(model, Policy.recompute_all(), [*UNITS, "blocks.*.fc2"], journal=journal) as runtime:
        runtime_step(model, [torch.randn(2, 8)], runtime)
    assert "fc2" not in {event.unit for event in journal.of(Kind.REPLAY_BEGIN)}


def test_flops_are_forward_and_backward_and_the_replayed_units() -> None:
    model = Stack(*(MlpBlock(8) for _ in range(3)))
    x = torch.randn(4, 8)

    def flops(runtime: Runtime | None) -> int:
        with FlopCounterMode(display=False) as counter:
            if runtime is None:
                model(x).backward()
            else:
                runtime_step(model, [x], runtime)
        return int(counter.get_total_flops())

    plain = flops(None)
    with attached(model, Policy.recompute_all(), [*UNITS, "blocks.*.fc2"]) as runtime:
        # Of a block's linears only fc1 is replayed: 2 * rows * inputs * outputs.
        assert flops(runtime) == plain + 3 * 2 * 4 * 8 * 16
    with attached(model, Policy.recompute("norm", "act"), UNITS) as runtime:
        assert flops(runtime) == plain


def test_a_fill_takes_the_latest_layer_first_and_dependencies_before_it() -> None:
    model, journal = Stack(*(MlpBlock(8) for _ in range(3))), Journal()
    with attached(model, Policy.recompute_all(), UNITS, journal=journal) as runtime:
        with runtime.microbatch(0):
            loss = model(torch.randn(2, 8))
        runtime.queue.fill(never)
        order = [(event.layer, event.unit) for event in journal.of(Kind.REPLAY_BEGIN)]
        assert order == [(layer, unit) for layer in (2, 1, 0) for unit in ("norm", "fc1", "act", "drop")]
        loss.backward()


def test_microbatches_are_prepared_in_the_order_of_their_backward() -> None:
    model, journal = Stack(MlpBlock(8)), Journal()
    for order, expect, first in (("fifo", (), 0), ("lifo", (), 2), ("fifo", (1, 0), 1)):
        journal.clear()
        with attached(model, Policy.recompute_all(), UNITS, journal=journal, backward_order=order) as runtime:
            losses = []
            for key in range(3):
                with runtime.microbatch(key):
                    losses.append(model(torch.randn(2, 8)))
            runtime.queue.expect(expect)
            runtime.queue.fill(limited(1))
            assert next(journal.of(Kind.REPLAY_BEGIN)).microbatch == first
            sum(losses).backward()
            runtime.step_end()


def test_the_microbatch_in_backward_comes_first() -> None:
    model, journal = Stack(MlpBlock(8), MlpBlock(8)), Journal()
    with attached(model, Policy.recompute_all(), UNITS, journal=journal) as runtime:
        losses = []
        for key in range(2):
            with runtime.microbatch(key):
                losses.append(model(torch.randn(2, 8)))
        # A window in the middle of the backward pass of microbatch 1, when its last block is done.
        window = model.blocks[1].norm.weight.register_hook(lambda grad: runtime.queue.fill(limited(2)) and None)
        losses[1].backward()
        window.remove()
        hidden = [(event.microbatch, event.layer, event.unit) for event in journal.of(Kind.REPLAY_END) if event.hidden]
        assert hidden == [(1, 0, "norm"), (1, 0, "fc1")]
        losses[0].backward()
        runtime.step_end()


def test_a_unit_called_several_times_is_told_apart() -> None:
    shared, journal = torch.nn.Linear(4, 4), Journal()
    model = torch.nn.ModuleDict({"shared": shared})
    with attached(model, Policy.recompute_all(), ["shared"], journal=journal) as runtime:
        with runtime.microbatch(0):
            x = torch.randn(2, 4)
            loss = shared(gelu(shared(gelu(shared(x))))).square().sum()
        loss.backward()
        runtime.step_end()
    assert [event.call for event in journal.of(Kind.FORWARD)] == [0, 1, 2]
    assert sorted(event.call for event in journal.of(Kind.REPLAY_END)) == [0, 1, 2]
