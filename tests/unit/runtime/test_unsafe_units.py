"""Units with side effects, tensors changed in place, and replays that do something else are refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from overlap_recompute.runtime import InPlaceError, Policy, UnitError, UnsafeUnitError
from tests.unit.runtime.faulty import WHERE, assert_clean, drop, lose
from tests.unit.runtime.support import attached

UNSAFE: dict[str, tuple[Callable[..., Any], type[UnitError], str]] = {
    "changes a buffer": (lambda u, x: (u.count.add_(1), x * u.weight)[1], UnsafeUnitError, "updates a buffer"),
    "replaces a buffer": (
        lambda u, x: (setattr(u, "count", u.count + 1), x * u.weight)[1],
        UnsafeUnitError,
        "updates a buffer",
    ),
    "changes its argument": (
        lambda u, x: x.mul_(2) * u.weight,
        InPlaceError,
        r"changes its argument of shape \(2, 4\)",
    ),
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


def untracked() -> nn.Module:
    """Its running statistics are updated by the kernel alone: no version tells."""
    norm = nn.BatchNorm1d(4)
    norm.num_batches_tracked = None
    return norm


def test_backward_of_another_unit_inside_a_replay_is_refused() -> None:
    outer_loss: list[torch.Tensor] = []

    def meddling(unit: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if outer_loss:
            outer_loss.pop().backward()
        return x * unit.weight

    unit, runtime = drop(meddling)
    with runtime.microbatch(7):
        first, second = (unit(torch.ones(2, 4)) ** 2).sum(), (unit(torch.ones(2, 4)) ** 2).sum()
    outer_loss.append(second)
    del second
    with pytest.raises(UnsafeUnitError, match=f"{WHERE}: backward runs inside the unit"):
        first.backward()
    del first
    assert_clean(runtime)


NORMS = (
    untracked(),
    nn.BatchNorm1d(4),
    nn.BatchNorm1d(4, momentum=None),
    nn.InstanceNorm1d(4, track_running_stats=True),
)


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


def test_hooks_inside_are_replayed_when_they_may_run_twice() -> None:
    inner, runs = nn.Linear(4, 4), []
    model = nn.ModuleDict({"unit": nn.Sequential(inner, nn.GELU())})
    with attached(model, Policy.recompute_all(), ["unit"], replay_inner_hooks=True) as runtime:
        inner.register_forward_hook(lambda *_: runs.append(runtime.replaying))
        with runtime.microbatch(0):
            loss = (model["unit"](torch.randn(2, 4)) ** 2).sum()
        loss.backward()
        runtime.step_end()
    assert runs == [False, True]


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

    def step() -> None:
        with runtime.microbatch(7):
            output = unit(torch.ones(2, 4))
            loss = ((output[0] if isinstance(output, tuple) else output) ** 2).sum()
        loss.backward()

    with pytest.raises(UnitError, match=f"{WHERE}.*{message}"):
        step()
    assert_clean(runtime)
