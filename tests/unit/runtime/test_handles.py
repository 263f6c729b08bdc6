"""Handles: what they stand for, how long they live, and how storages are told apart."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from overlap_recompute.runtime import Journal, Kind, Policy, Runtime
from overlap_recompute.runtime.calls import UnitCall
from overlap_recompute.runtime.handles import Entry, Handle, OutputRef
from tests.unit.runtime.cases import BODIES, Unit, chain, check, replays, scaled
from tests.unit.runtime.support import attached


@pytest.mark.parametrize("fill", [False, True], ids=["on demand", "filled"])
@pytest.mark.parametrize("case", BODIES)
def test_gradients_are_equal_for(case: str, fill: bool) -> None:
    functions, body = BODIES[case]
    check(functions, body, fill)


def test_units_that_nobody_needs_are_not_replayed() -> None:
    assert replays(check(*BODIES["a unit that nobody needs"])) == 0
    assert replays(check(*BODIES["in-place on the output, before it is saved"])) == 0
    assert replays(check(*BODIES["an output that is the input"])) == 0
    assert replays(check(*BODIES["an identity of a dropped output"])) == 1


def test_a_chain_longer_than_the_recursion_limit() -> None:
    count = 1200
    model = nn.ModuleList(Unit(scaled) for _ in range(count))
    with attached(model, Policy.recompute_all(), ["*"]) as runtime:
        with runtime.microbatch(0):
            loss = chain(torch.ones(2, 4), tuple(model))
        loss.backward()
        assert runtime.step_end().exposed_replays == count


def test_the_outermost_dropped_unit_wins() -> None:
    inner = Unit(scaled)
    outer = Unit(lambda w, x: inner(x * w).sin())
    model = nn.ModuleDict({"outer": outer, "inner": inner})
    x, journal = torch.randn(3, 4, requires_grad=True), Journal()
    units = {"outer": Policy.recompute("outer", "inner"), "inner": Policy.recompute("inner")}
    for replayed, policy in units.items():
        journal.clear()
        with attached(model, policy, ["outer", "inner"], journal=journal) as runtime:
            with runtime.microbatch(0):
                loss = (outer(x) ** 2).sum()
            loss.backward()
            runtime.step_end()
        assert {event.unit for event in journal.of(Kind.REPLAY_END)} == {replayed}


def test_retained_graphs_work_with_one_replay() -> None:
    unit, journal = Unit(scaled), Journal()
    model, x = nn.ModuleList([unit]), torch.randn(3, 4)
    with attached(model, Policy.recompute_all(), ["*"], journal=journal) as runtime:
        with runtime.microbatch(0):
            loss = (unit(x) ** 2).sum()
        loss.backward(retain_graph=True)
        assert runtime.ledger.recomputed_bytes == 48
        first = unit.weight.grad.clone()
        loss.backward()
        runtime.step_end()
    assert torch.equal(unit.weight.grad, 2 * first)
    assert replays(journal) == 1


def test_double_backward_works() -> None:
    unit = Unit(lambda w, x: torch.sin(x * w))
    model, x = nn.ModuleList([unit]), torch.randn(3, 4, requires_grad=True)

    def penalty(loss: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        (grad**2).sum().backward()
        found = unit.weight.grad.clone()
        model.zero_grad()
        x.grad = None
        return found

    expected = penalty((unit(x) ** 3).sum())
    with attached(model, Policy.recompute_all(), ["*"]) as runtime:
        with runtime.microbatch(0):
            loss = (unit(x) ** 3).sum()
        assert torch.equal(penalty(loss), expected)
        del loss
        runtime.step_end()
        # A gradient penalty inside the forward pass: the unit is replayed before the microbatch is complete.
        with runtime.microbatch(0):
            value = (unit(x) ** 3).sum()
            (grad,) = torch.autograd.grad(value, x, create_graph=True)
            loss = (grad**2).sum()
        loss.backward()
        del value, grad
        runtime.step_end()
    assert torch.equal(unit.weight.grad, expected)


def test_results_die_with_the_last_node_that_refers_to_them() -> None:
    unit = Unit(lambda w, x: (x * w, x + w))
    model, x = nn.ModuleList([unit]), torch.randn(3, 4)
    with attached(model, Policy.recompute_all(), ["*"]) as runtime:
        with runtime.microbatch(0):
            a, b = unit(x)
            first, second = (a**2).sum(), (b**2).sum()
            del a, b
        first.backward(retain_graph=True)
        assert runtime.ledger.recomputed_bytes == 2 * 48
        del first
        assert runtime.ledger.recomputed_bytes == 48
        del second
        assert runtime.ledger.recomputed_bytes == 0
        runtime.step_end()


def _bookkeeping() -> list[object]:
    return [found for found in gc.get_objects() if type(found) in (Handle, Entry, UnitCall)]


def test_nothing_needs_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    # Other tests may have left some that something still refers to, such as a traceback that was kept.
    before = {id(found) for found in _bookkeeping()}
    try:
        functions, body = BODIES["arguments in containers"]
        check(functions, body, fill=True)
        assert not [found for found in _bookkeeping() if id(found) not in before]
    finally:
        gc.enable()


def test_an_address_that_is_used_again_is_another_storage() -> None:
    """A storage that died may lie at the address of a living one: only the weak reference tells them apart."""
    unit = Unit(scaled)
    model = nn.ModuleList([unit])
    with attached(model, Policy.recompute_all(), ["*"]) as runtime:
        state = runtime._state
        with runtime.microbatch(0):
            output = unit(torch.ones(1, 4))
            (key,) = state.outputs
            ref = state.outputs[key]
            # Pretend that the output died and that another storage took its address before anyone noticed.
            del output
            assert key not in state.outputs, "an output that died is forgotten at once"
            other = torch.ones(1, 4, requires_grad=True) * 1
            stale = OutputRef(torch.ones(1).untyped_storage())
            for name in ("key", "table", "call", "position", "version", "view", "dtype", "nbytes", "account"):
                setattr(stale, name, getattr(ref, name))
            state.outputs[other.untyped_storage()._cdata] = stale
            loss = (other**2).sum()
            assert runtime.ledger.dropped_bytes == 0
            assert runtime.ledger.kept_bytes == 16 + 16
        loss.backward()
        del ref, stale
        runtime.step_end()


def test_addresses_are_used_again_inside_a_unit() -> None:
    """In a dropped unit a saved tensor dies when the next one is made, so sooner or later they share addresses."""

    def deep(weight: Tensor, x: Tensor) -> Tensor:
        for _ in range(50):
            x = (x * weight).sin()
        return x

    unit = Unit(deep)
    model, x = nn.ModuleList([unit]), torch.randn(64, 4)
    (unit(x) ** 2).sum().backward()
    expected = unit.weight.grad.clone()
    unit.weight.grad = None
    with attached(model, Policy.recompute_all(), ["*"]) as runtime:
        with runtime.microbatch(0):
            loss = (unit(x) ** 2).sum()
        # What sin and * save, 50 times; the first argument of * is kept, the last sin is the output.
        assert runtime.ledger.dropped_bytes == 2 * 50 * 64 * 4 * 4
        loss.backward()
        runtime.step_end()
    assert torch.equal(unit.weight.grad, expected)


def test_functions_can_be_units() -> None:
    weight, x = torch.randn(4, requires_grad=True), torch.randn(3, 4)
    runtime = Runtime(Policy.recompute("act", layers=[2]))
    runtime.declare("act", 2)
    with runtime.microbatch(0):
        loss = (runtime.run("act", 2, lambda x, w: torch.sin(x * w), x, weight) ** 2).sum()
    assert runtime.ledger.dropped_bytes == 2 * 48
    loss.backward()
    assert runtime.step_end().exposed_replays == 1
    found, weight.grad = weight.grad, None
    (torch.sin(x * weight) ** 2).sum().backward()
    assert torch.equal(weight.grad, found)


def test_anyone_may_materialize_a_unit_early() -> None:
    unit = Unit(scaled)
    model = nn.ModuleList([unit])
    with attached(model, Policy.recompute_all(), ["*"]) as runtime:
        with runtime.microbatch("a"):
            loss = (unit(torch.ones(1, 4)) ** 2).sum()
        (layer,) = (layer for _, layer in runtime.units)
        assert runtime.materialize("a", "layer", layer)
        assert not runtime.materialize("a", "layer", layer), "it is there already"
        assert not runtime.materialize("b", "layer", layer), "there is no such microbatch"
        assert runtime.ledger.prefetched_bytes == 16
        loss.backward()
        report = runtime.step_end()
    assert (report.hidden_replays, report.exposed_replays) == (1, 0)


def test_a_long_chain_that_nobody_uses_dies_quietly() -> None:
    model = nn.ModuleList(Unit(scaled) for _ in range(3000))
    with attached(model, Policy.recompute_all(), ["*"]) as runtime:
        with runtime.microbatch(0):
            loss = chain(torch.ones(2, 4), tuple(model))
        del loss
        assert (runtime.ledger.kept_bytes, runtime.ledger.dropped_bytes) == (0, 0)
        assert runtime.step_end().exposed_replays == 0


def test_no_reference_to_the_model_outlives_the_runtime() -> None:
    unit = Unit(scaled)
    model = nn.ModuleList([unit])
    with attached(model, Policy.recompute_all(), ["*"]) as runtime:
        with runtime.microbatch(0):
            loss = (unit(torch.ones(1, 4)) ** 2).sum()
        loss.backward()
        runtime.step_end()
    ref = weakref.ref(unit)
    del unit, model, loss
    assert ref() is None
