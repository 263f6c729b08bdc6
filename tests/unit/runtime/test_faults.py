"""Exceptions, unsteady units and unfinished steps: one clear error that names the unit, and nothing left behind."""

import pickle

import pytest
import torch
from torch import Tensor

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.runtime import Journal, Kind, Policy, ReplayError, Runtime, UnfinishedError, VerifyError
from tests.unit.runtime.faulty import WHERE, Unit, assert_clean, drop, lose
from tests.unit.runtime.models import MlpBlock, Stack
from tests.unit.runtime.support import never


def raising(unit: Unit, x: Tensor) -> Tensor:
    if unit.calls > 1:
        raise RuntimeError("no second time")
    return x * unit.weight


@pytest.mark.parametrize("hidden", [False, True])
def test_an_exception_in_a_replay_surfaces_once(hidden: bool) -> None:
    journal = Journal()
    unit, runtime = drop(raising, journal=journal)
    loss = lose(unit, runtime)
    state = torch.get_rng_state()
    with pytest.raises(ReplayError, match=WHERE + ".*RuntimeError: no second time") as caught:
        runtime.queue.fill(never) if hidden else loss.backward()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.place == ("layer", 0, 7, 0)
    assert [event.hidden for event in journal.of(Kind.REPLAY_FAILED)] == [hidden]
    assert not list(journal.of(Kind.REPLAY_END))
    assert torch.equal(torch.get_rng_state(), state)
    assert (runtime.ledger.recomputed_bytes, runtime.ledger.prefetched_bytes) == (0, 0)
    if hidden:
        with pytest.raises(ReplayError, match="failed before"):
            loss.backward()
    del loss, caught
    assert (runtime.ledger.kept_bytes, runtime.ledger.dropped_bytes) == (0, 0)
    assert_clean(runtime)


def test_a_failed_replay_gives_back_what_it_had_made() -> None:
    def failing_late(unit: Unit, x: Tensor) -> Tensor:
        y = (x * unit.weight).exp().sin()
        if unit.calls > 1:
            raise KeyError("late")
        return y

    unit, runtime = drop(failing_late)
    loss = lose(unit, runtime)
    dropped_bytes = runtime.ledger.dropped_bytes
    with pytest.raises(ReplayError, match="KeyError"):
        runtime.queue.fill(never)
    assert (runtime.ledger.dropped_bytes, runtime.ledger.recomputed_bytes) == (dropped_bytes, 0)
    del loss
    assert_clean(runtime)


def test_an_interrupt_is_not_dressed_up() -> None:
    def interrupted(unit: Unit, x: Tensor) -> Tensor:
        if unit.calls > 1:
            raise KeyboardInterrupt
        return x * unit.weight

    unit, runtime = drop(interrupted)
    loss = lose(unit, runtime)
    with pytest.raises(KeyboardInterrupt):
        runtime.queue.fill(never)
    del loss
    assert_clean(runtime)


def test_an_exception_in_the_forward_pass_leaves_nothing() -> None:
    def failing(unit: Unit, x: Tensor) -> Tensor:
        raise ZeroDivisionError

    unit, runtime = drop(failing)
    with pytest.raises(ZeroDivisionError):
        lose(unit, runtime)
    with pytest.raises(ZeroDivisionError):
        lose(unit, runtime)
    assert_clean(runtime)


def test_an_exception_of_the_window_passes_through() -> None:
    unit, runtime = drop(lambda unit, x: x * unit.weight)
    loss = lose(unit, runtime)
    with pytest.raises(ConnectionError):
        runtime.queue.fill(lambda: (_ for _ in ()).throw(ConnectionError("peer lost")))
    loss.backward()
    runtime.step_end()
    assert_clean(runtime)


def test_verify_finds_a_unit_that_is_not_deterministic() -> None:
    def drifting(unit: Unit, x: Tensor) -> Tensor:
        return x * unit.weight + 1e-7 * unit.calls

    unit, runtime = drop(drifting, verify=True)
    loss = lose(unit, runtime, torch.full((2, 4), 1e-6))
    with pytest.raises(VerifyError, match=WHERE + r".*output 0, of shape \(2, 4\), differs in \d+ of 32 bytes"):
        loss.backward()
    del loss
    unit, runtime = drop(lambda u, x: ((x * u.weight + 1e-7 * u.calls).exp() * 0).sum(1), verify=True)
    loss = lose(unit, runtime, torch.full((2, 4), 1e-6))
    with pytest.raises(VerifyError, match=WHERE + r".*tensor \d that it saves"):
        loss.backward()
    del loss
    assert_clean(runtime)


def test_verify_takes_equal_nans_for_equal() -> None:
    unit, runtime = drop(lambda u, x: (x * u.weight).log(), verify=True)
    lose(unit, runtime, -torch.ones(2, 4)).backward()
    assert runtime.step_end().exposed_replays == 1
    assert_clean(runtime)


def test_a_step_with_handles_left_is_refused() -> None:
    unit, runtime = drop(lambda u, x: x * u.weight)
    loss = lose(unit, runtime)
    with pytest.raises(UnfinishedError, match=r"handles of 1 unit calls.*" + WHERE):
        runtime.step_end()
    with pytest.raises(UnfinishedError, match="microbatch 7 begins while microbatch 7 is in flight"):
        lose(unit, runtime)
    with runtime.microbatch(8), pytest.raises(UnfinishedError, match="microbatch 9 begins while microbatch 8"):
        runtime.microbatch(9).__enter__()
    loss.backward()
    runtime.step_end()
    assert_clean(runtime)


def test_errors_travel_between_processes() -> None:
    unit, runtime = drop(raising)
    with pytest.raises(ReplayError) as caught:
        lose(unit, runtime).backward()
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert str(copy) == str(caught.value)
    assert copy.place == caught.value.place


def test_names_that_do_not_exist_are_refused() -> None:
    model = Stack(MlpBlock(8), MlpBlock(8))
    runtime = Runtime(Policy.recompute("nrom"))
    with pytest.raises(ConfigError, match=r"'blocks.\*.nrom'.*blocks.\*.norm"):
        runtime.attach(model, ["blocks.*.nrom"])
    runtime.attach(model, ["blocks.*.norm", "blocks.*.act"])
    with pytest.raises(ConfigError, match=r"unit 'nrom'.*one of the units act, norm of layers 0 to 1.*'norm'"):
        runtime.microbatch(0)
    runtime.set_policy(Policy.recompute("norm", layers=[5]))
    with pytest.raises(ConfigError, match="in layer 5"):
        runtime.microbatch(0)
    with pytest.raises(ConfigError, match="attached already|twice"):
        runtime.attach(model, ["blocks.*.norm"])
    runtime.set_policy(Policy.save_all())
    with pytest.raises(ConfigError, match=r"declare\('act', 9\)"), runtime.microbatch(0):
        runtime.run("act", 9, torch.sin, torch.ones(1))
