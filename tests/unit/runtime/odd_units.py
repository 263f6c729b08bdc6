"""Units that do what units may do, at random: in-place operations, views, containers, casts, functions of their own."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

WIDTH, ROWS = 4, 3


class SinTimes(torch.autograd.Function):
    """Saves arguments and result; a second output without gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.sin(x) * weight
        ctx.save_for_backward(x, weight, y)
        ctx.mark_non_differentiable(other := y.detach() * 2)
        return y, other

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, y = ctx.saved_tensors
        return gradient * torch.cos(x) * weight, (gradient * torch.sin(x) + 0 * y).sum(0)


class DoubledInPlace(torch.autograd.Function):
    """Changes its argument, and saves it afterwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.mul_(2)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * 2 + 0 * x


def _overwritten(unit: "OddUnit", x: Tensor, y: Tensor) -> Tensor:
    z = x * unit.weight
    z[0] = y[0] * 2
    return z.sin()


def _complex(unit: "OddUnit", x: Tensor) -> Tensor:
    return torch.view_as_complex((x * unit.weight).contiguous().view(ROWS, WIDTH // 2, 2))


KINDS: tuple[Callable[["OddUnit", Tensor, Tensor], Any], ...] = (
    lambda u, x, y: u.norm(x),
    lambda u, x, y: u.drop(u.linear(x)) + y,
    lambda u, x, y: functional.gelu(x * u.weight + y),
    lambda u, x, y: (x * u.weight).relu_(),
    lambda u, x, y: {"flipped": (x * y).flip(-1), "nothing": None, "half": (x * y).split(WIDTH // 2, -1)[0]},
    lambda u, x, y: SinTimes.apply(x, u.weight)[0],
    lambda u, x, y: [torch.softmax(x, -1), (x @ y.t()).argmax(-1), 3],
    lambda u, x, y: x,
    lambda u, x, y: x.t().t(),
    lambda u, x, y: (u.drop(x) * u.scale, u.drop(y) * u.weight),
    lambda u, x, y: checkpoint(lambda z: u.drop(u.linear(z)).tanh(), x, use_reentrant=False),
    lambda u, x, y: DoubledInPlace.apply(x * u.weight).cos(),
    lambda u, x, y: (x * u.weight).detach() * y,
    lambda u, x, y: torch.linalg.vector_norm(x, dim=-1, keepdim=True) * y,
    lambda u, x, y: functional.scaled_dot_product_attention(x[None], y[None], (x * y)[None], is_causal=True)[0],
    _overwritten,
    lambda u, x, y: (x.bfloat16() * u.weight.bfloat16()).float(),
    lambda u, x, y: torch.cat([x[:, :1], y[:, 1:]], -1).contiguous().view(-1, WIDTH).mul(u.weight),
    lambda u, x, y: torch.rand_like(x) * x * torch.bernoulli(torch.full_like(x, 0.5)),
    lambda u, x, y: x.max(-1, keepdim=True)[0] * y + x.cumsum(0),
    lambda u, x, y: _complex(u, x).exp().abs().repeat(1, 2),
    lambda u, x, y: _complex(u, x).conj(),
    lambda u, x, y: u.weight,
    lambda u, x, y: functional.batch_norm(x, None, None, u.weight, u.linear.bias, True),
    lambda u, x, y: functional.embedding(x.detach()[:, 0].abs().long().clamp(0, 2), u.linear.weight),
    lambda u, x, y: u.others[0](y, x) if u.others else x.exp(),
)


class OddUnit(nn.Module):
    """One of `KINDS`."""

    def __init__(self, kind: int, others: list[nn.Module]) -> None:
        super().__init__()
        self.compute = KINDS[kind]
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))
        self.register_buffer("scale", torch.linspace(1, 2, WIDTH))
        self.linear, self.norm, self.drop = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Dropout(0.3)
        self.others = others
        """A unit in front of this one, which the last kind calls; a list, so that it is no submodule."""

    def forward(self, x: Tensor, y: Tensor | None = None, held: Any = None, *, factor: float | None = None) -> Any:
        if held is not None:
            y = held["pair"][1]
        found = self.compute(self, x, x if y is None else y)
        return found if factor is None or not isinstance(found, Tensor) else found * factor


CALLS: tuple[Callable[[nn.Module, Tensor, Tensor], Any], ...] = (
    lambda unit, a, b: unit(a),
    lambda unit, a, b: unit(a, y=b, factor=1.5),
    lambda unit, a, b: unit(a, b, {"pair": (a, b), "list": [a, (b, None)]}),
    lambda unit, a, b: unit(a, b),
)
# Between the units: operations that save dropped outputs, views of them, or change them in place.
BETWEEN: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda v: v,
    lambda v: v,
    lambda v: v,
    lambda v: v.clone().relu_(),
    lambda v: v.t().exp().t().clamp(max=5),
    lambda v: (v * 1.5).add_(1),
    lambda v: v.detach(),
    lambda v: checkpoint(lambda t: t.tanh() * 2, v, use_reentrant=False),
    lambda v: v.square().clamp(max=9),
)


class OddNet(nn.Module):
    """Units in random order, some twice, with random arguments."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = random.Random(seed)
        self.units = nn.ModuleList()
        self.plan: list[tuple[int, int, int, int, int, bool, bool]] = []
        self.fails_at: int | None = None
        for count in range(chance.randint(1, 8)):
            others = [self.units[chance.randrange(count)]] if count else []
            self.units.append(OddUnit(chance.randrange(len(KINDS)), others))
            for _ in range(2 if chance.random() < 0.25 else 1):
                step = (chance.randrange(count + 1), chance.randrange(99), chance.randrange(99))
                step += (chance.randrange(len(CALLS)), chance.randrange(len(BETWEEN)))  # type: ignore[assignment]
                self.plan.append((*step, chance.random() < 0.6, chance.random() < 0.1))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for position, (index, first, second, call, between, in_place, again) in enumerate(self.plan):
            if position == self.fails_at:
                raise ZeroDivisionError
            a, b = values[first % len(values)], values[second % len(values)]
            found = CALLS[call](self.units[index], a, b)
            value = BETWEEN[between](_one(found))
            if in_place and _may_change(value, values):
                value = value.mul_(0.5)
            values.append(value)
            if again:
                with torch.no_grad():
                    CALLS[call](self.units[index], a, b)
        total = sum(value.square().mean() for value in values[-3:])
        assert isinstance(total, Tensor)
        return total


def _may_change(value: Tensor, others: list[Tensor]) -> bool:
    """Whether plain autograd lets one change this in place: its own node has not saved it, and it is nobody else's."""
    node = type(value.grad_fn).__name__
    is_own = not value._is_view() and all(value.data_ptr() != other.data_ptr() for other in others)
    return is_own and node in ("AddBackward0", "GeluBackward0", "MulBackward0", "NativeLayerNormBackward0")


def _one(value: Any) -> Tensor:
    """The sum of the tensors of a value, each brought to one shape."""
    parts = []
    for leaf in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]:
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            real = torch.view_as_real(leaf.resolve_conj()).reshape(ROWS, -1) if leaf.is_complex() else leaf
            wide = real.expand(ROWS, -1) if real.dim() == 1 else real
            parts.append(wide if wide.shape[-1] == WIDTH else wide.repeat(1, WIDTH // wide.shape[-1]))
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
