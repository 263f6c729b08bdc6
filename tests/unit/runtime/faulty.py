"""A unit made of a function, and what a fault must leave behind: nothing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from overlap_recompute.runtime import Policy, Runtime
from tests.unit.runtime.models import MlpBlock, Stack
from tests.unit.runtime.support import plain_step, runtime_step, same_bits

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
