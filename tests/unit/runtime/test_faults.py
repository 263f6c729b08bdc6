"""Everything that can go wrong with a unit: one clear error that names it, and nothing left behind."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.runtime import (
    InPlaceError,
    Journal,
    Kind,
    Policy,
    ReplayError,
    Runtime,
    UnfinishedError,
    UnitError,
    UnsafeUnitError,
    VerifyError,
)
from tests.unit.runtime.models import MlpBlock, Stack
from tests.unit.runtime.support import attached, never, plain_step, runtime_step, same_bits

WHERE = r"unit 'layer' of layer 0, microbatch 7"


class Unit(nn.Module):
    """A unit made of a function of a weight and a tensor."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.weight, self.calls = function, nn.Parameter(torch.ones(4)), 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.function(self, x)


def drop(function: Callable[..., Any], **options: Any) -> tuple[Unit, Runtime]:
    unit = Unit(function)
    runtime = Runtime(Policy.recompute_all(), **options)
    runtime.attach(nn.ModuleList([unit]), ["*"])
    return unit, runtime


def lose(unit: Unit, runtime: Runtime, x: Tensor | None = None) -> Tensor:
    with runtime.microbatch(7):
        return (unit(torch.ones(2, 4) if x is None else x) ** 2).sum()


def raising(unit: Unit, x: Tensor) -> Tensor:
    if unit.calls > 1:
        raise RuntimeError("no second time")
    return x * unit.weight


def assert_clean(runtime: Runtime) -> None:
    """No hook, context or microbatch is in force any more, and the next step works."""
    assert not runtime.replaying
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        torch.ones(2, requires_grad=True).exp()
    assert len(saved) == 1
    torch._C._autograd._push_saved_tensors_default_hooks(lambda t: t, lambda t: t)
    torch._C._autograd._pop_saved_tensors_default_hooks()
    runtime.abort()
    model = Stack(MlpBlock(8))
    units = ["blocks.*.norm", "blocks.*.drop"]
    x = torch.randn(2, 8)
    expected = plain_step(model, [x])
    runtime.detach()
    runtime.set_policy(Policy.recompute_all())
    runtime.attach(model, units)
    assert same_bits(runtime_step(model, [x], runtime), expected)
    runtime.detach()


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


UNSAFE: dict[str, tuple[Callable[..., Any], type[UnitError], str]] = {
    "changes a buffer": (lambda u, x: (u.count.add_(1), x * u.weight)[1], UnsafeUnitError, "updates a buffer"),
    "replaces a buffer": (
        lambda u, x: (setattr(u, "count", u.count + 1), x * u.weight)[1],
        UnsafeUnitError,
        "updates a buffer",
    ),
    "changes its argument": (lambda u, x: x.mul_(2) * u.weight, InPlaceError, r"changes its argument of shape \(2, 4\)"),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_a_unit_with_a_side_effect_is_refused(case: str) -> None:
    function, kind, message = UNSAFE[case]
    unit, runtime = drop(function)
    with pytest.raises(kind, match=f"{WHERE}.*{message}"):
        lose(unit, runtime)
    runtime.set_policy(Policy.save_all())
    lose(unit, runtime).backward()
    runtime.step_end()
    assert_clean(runtime)


NORMS = (nn.BatchNorm1d(4), nn.BatchNorm1d(4, momentum=None), nn.InstanceNorm1d(4, track_running_stats=True))


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_running_statistics_are_refused_while_they_are_updated(norm: nn.Module) -> None:
    model = nn.ModuleList([norm])
    x = torch.randn(3, 4, 5)
    norm.train()
    with attached(model, Policy.recompute_all(), ["*"]) as runtime:
        with pytest.raises(UnsafeUnitError, match="running statistics"), runtime.microbatch(0):
            norm(x)
        norm.eval()
        with runtime.microbatch(0):
            loss = (norm(x.requires_grad_()) ** 2).sum()
        loss.backward()
        assert runtime.step_end().exposed_replays == 1


def test_hooks_of_the_unit_run_once_and_hooks_inside_are_refused() -> None:
    inner = nn.Linear(4, 4)
    unit = nn.Sequential(inner, nn.GELU())
    model, seen = nn.ModuleDict({"unit": unit}), []
    unit.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    unit.register_forward_hook(lambda module, args, output: seen.append(1) or output + 1)
    x = torch.randn(2, 4)
    (unit(x) ** 2).sum().backward()
    expected = inner.weight.grad.clone()
    model.zero_grad()
    seen.clear()
    with attached(model, Policy.recompute_all(), ["unit"]) as runtime:
        with runtime.microbatch(0):
            loss = (unit(x) ** 2).sum()
        loss.backward()
        runtime.step_end()
        assert seen == [1]
        assert torch.equal(inner.weight.grad, expected)
        handle = inner.register_forward_hook(lambda *_: None)
        with pytest.raises(UnsafeUnitError, match="inside the unit has forward hooks"), runtime.microbatch(1):
            unit(x)
        handle.remove()


def test_an_argument_changed_after_the_unit_is_refused() -> None:
    unit, runtime = drop(lambda u, x: x.sin() * u.weight)
    x = torch.randn(2, 4) * torch.ones(1, requires_grad=True)
    loss = lose(unit, runtime, x)
    x.detach().mul_(2)
    with pytest.raises(InPlaceError, match=WHERE + ": an argument changed in place"):
        loss.backward()
    del loss
    assert_clean(runtime)


def test_a_parameter_changed_before_the_replay_is_refused() -> None:
    unit, runtime = drop(lambda u, x: x + u.weight)
    loss = lose(unit, runtime)
    with torch.no_grad():
        unit.weight.add_(1)
    with pytest.raises(InPlaceError, match=WHERE + ": a parameter changed in place"):
        loss.backward()
    del loss
    assert_clean(runtime)


def test_a_kept_tensor_changed_before_backward_is_refused_as_by_autograd() -> None:
    unit, runtime = drop(lambda u, x: x * u.weight)
    runtime.set_policy(Policy.save_all())
    x = torch.randn(2, 4) * 1
    loss = lose(unit, runtime, x)
    x.mul_(2)
    with pytest.raises(InPlaceError, match=r"shape \(2, 4\) kept for backward of layer 0, microbatch 7"):
        loss.backward()
    del loss
    assert_clean(runtime)


def test_a_tensor_saved_and_then_changed_inside_the_unit_is_refused_as_by_autograd() -> None:
    unit, runtime = drop(lambda u, x: (lambda y: (y.exp_(), y.mul_(2))[1])(x * u.weight))
    loss = lose(unit, runtime)
    with pytest.raises(InPlaceError, match=WHERE + ".*saves and then changes"):
        loss.backward()
    del loss
    assert_clean(runtime)


UNSTEADY: dict[str, tuple[Callable[..., Any], str]] = {
    "saves more": (lambda u, x: (x * u.weight).sin() if u.calls > 1 else x * u.weight, "number of saved tensors"),
    "saves less": (lambda u, x: x * u.weight if u.calls > 1 else (x * u.weight).sin(), "number of saved tensors"),
    "another shape inside": (
        lambda u, x: (x * u.weight).repeat(1 + (u.calls > 1), 1).sin()[:2].clone(),
        "saved tensor 1 of the replay",
    ),
    "another stride": (
        lambda u, x: (lambda y: y.t().contiguous().t() if u.calls > 1 else y.clone())(x * u.weight),
        "geometry of output 0 of the replay",
    ),
    "fewer outputs": (lambda u, x: (x * u.weight,) if u.calls > 1 else (x * u.weight, x + 1), "number of outputs"),
    "backward inside": (
        lambda u, x: torch.autograd.grad((x * u.weight).sin().sum(), u.weight)[0] * x * u.weight,
        "backward",
    ),
}


@pytest.mark.parametrize("case", UNSTEADY)
def test_a_replay_that_does_something_else_is_refused(case: str) -> None:
    function, message = UNSTEADY[case]
    unit, runtime = drop(function)
    with pytest.raises(UnitError, match=f"{WHERE}.*{message}"), runtime.microbatch(7):
        output = unit(torch.ones(2, 4))
        loss = ((output[0] if isinstance(output, tuple) else output) ** 2).sum()
        loss.backward()
    output = loss = None
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
