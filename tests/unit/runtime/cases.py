"""Units and how their outputs are used: views, tuples, aliases, and arguments of every kind."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from overlap_recompute.runtime import Journal, Kind, Policy
from tests.unit.runtime.support import attached, never, same_bits


class Unit(nn.Module):
    """A module around a function of tensors and a weight."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 4))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.weight, *args, **kwargs)


def check(
    functions: list[Callable[..., Any]],
    body: Callable[..., Tensor],
    fill: bool = False,
    verify: bool = True,
    **options: Any,
) -> Journal:
    """Compare `body(x, *units)` under the runtime, all units dropped, with plain autograd; returns the journal."""
    torch.manual_seed(0)
    model = nn.ModuleList(Unit(function) for function in functions)
    x = torch.randn(3, 4, requires_grad=True)

    def results() -> list[Tensor]:
        found = [x.grad, *(p.grad for p in model.parameters())]
        x.grad = None
        model.zero_grad()
        return [torch.zeros(0) if grad is None else grad for grad in found]

    torch.manual_seed(1)
    body(x, *model).backward()
    expected = results()
    journal = Journal()
    with attached(model, Policy.recompute_all(), ["*"], journal=journal, verify=verify, **options) as runtime:
        torch.manual_seed(1)
        with runtime.microbatch(0):
            loss = body(x, *model)
        if fill:
            runtime.queue.fill(never)
        loss.backward()
        runtime.step_end()
        ledger = runtime.ledger
    assert (ledger.kept_bytes, ledger.dropped_bytes, ledger.recomputed_bytes, ledger.prefetched_bytes) == (0, 0, 0, 0)
    assert same_bits(results(), expected)
    return journal


def replays(journal: Journal) -> int:
    return len(list(journal.of(Kind.REPLAY_END)))


def scaled(weight: Tensor, x: Tensor) -> Tensor:
    return x * weight


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


BODIES: dict[str, tuple[list[Callable[..., Any]], Callable[..., Tensor]]] = {
    "views of an output": ([scaled], lambda x, u: sum(part.exp().sum() for part in u(x).t().split(2))),
    "a view of a view, offset": ([scaled], lambda x, u: (u(x)[1:, ::2].t()[0] ** 3).sum()),
    "an expanded output": ([scaled], lambda x, u: (u(x)[:, :1].expand(3, 4) ** 2).sum()),
    "a tuple of outputs": (
        [lambda w, x: (x * w, x + w)],
        lambda x, u: (lambda a, b: (a * b).sum() + (b**2).sum())(*u(x)),
    ),
    "a tuple of views of one storage": ([lambda w, x: (x * w).split(2, 1)], lambda x, u: (u(x)[0] * u(x)[1]).sum()),
    "a dictionary, nested, with other things": (
        [lambda w, x: {"a": [x * w, None, 3], "b": Pair(x + w, x.sin())}],
        lambda x, u: (lambda d: (d["a"][0] ** 2 * d["b"].second * d["b"].first).sum())(u(x)),
    ),
    "an output that is the input": ([lambda w, x: x], lambda x, u: (u(x.exp()) ** 2).sum()),
    "an output that is a view of the input": ([lambda w, x: x.t()], lambda x, u: (u(x.exp()) ** 2).sum()),
    "an identity of a dropped output": ([scaled, lambda w, x: x], lambda x, u, v: (v(u(x)) ** 2).sum()),
    "a view of a dropped output": ([scaled, lambda w, x: x[1:]], lambda x, u, v: (v(u(x)) ** 2).sum()),
    "an output that is a parameter": ([lambda w: w], lambda x, u: (u() * x).sum()),
    "an unused output": ([lambda w, x: (x * w, x.exp())], lambda x, u: (u(x)[0] ** 2).sum()),
    "a unit that nobody needs": ([scaled], lambda x, u: (u(x), x.sum())[1]),
    "keyword and plain arguments": (
        [lambda w, x, y=None, *, scale, flag: x * w * scale + (y if flag else 0)],
        lambda x, u: (u(x, y=x.sin(), scale=2.5, flag=True) ** 2).sum(),
    ),
    "arguments in containers": (
        [scaled, lambda w, pair, more: (pair[0] * pair[1] * w * more["z"]).exp()],
        lambda x, u, v: v((u(x), x.cos()), {"z": u(x)}).sum(),
    ),
    "a named tuple as argument": (
        [scaled, lambda w, p: p.first * p.second * w],
        lambda x, u, v: v(Pair(u(x), x)).exp().sum(),
    ),
    "a container after a dropped argument": (
        [scaled, lambda w, a, b: (a * b[0] * w).exp()],
        lambda x, u, v: v(u(x), [x.sin()]).sum(),
    ),
    "the same argument twice": (
        [scaled, lambda w, a, b: (a * b if a is b else a + b).exp()],
        lambda x, u, v: (lambda h: v(h, h).sum())(u(x)),
    ),
    "a parameter as argument": ([lambda w, x, p: (x * p * w).exp()], lambda x, u: u(x, u.weight).sum()),
    "an argument made in inference mode": (
        [lambda w, x, bias: (x * w + bias).sin()],
        lambda x, u: u(x, _inferred()).sum(),
    ),
    "outputs without gradients": (
        [lambda w, x: (x * w, x > 0)],
        lambda x, u: (lambda y, mask: torch.where(mask, y**2, y).sum())(*u(x)),
    ),
    "softmax saves its own output": ([lambda w, x: torch.softmax(x * w, -1)], lambda x, u: (u(x) ** 2).sum()),
    "softmax, used through a view": ([lambda w, x: torch.softmax(x * w, -1)], lambda x, u: (u(x).t() ** 2).sum()),
    "in-place on what is not saved yet": ([lambda w, x: functional.relu_(x * w)], lambda x, u: (u(x) ** 2).sum()),
    "in-place on the output, before it is saved": ([scaled], lambda x, u: (u(x).mul_(2) ** 2).sum()),
    "complex outputs": ([lambda w, x: torch.complex(x * w, x)], lambda x, u: (u(x) * u(x).conj()).real.sum()),
    "the real view of a complex output": (
        [lambda w, x: torch.complex(x * w, x)],
        lambda x, u: (torch.view_as_real(u(x)) ** 2).sum(),
    ),
    "a dropped output of another dtype": ([lambda w, x: (x * w).double()], lambda x, u: (u(x) ** 2).sum()),
    "a detached output": ([scaled], lambda x, u: (u(x).detach() * x).sum()),
    "an output whose own node is gone": (
        [lambda w, x: torch.softmax(x * w, -1)],
        lambda x, u: (lambda y: (y * x).sum())(u(x).detach()),
    ),
    "a long chain": ([scaled] * 40, lambda x, *units: chain(x, units)),
}


def _inferred() -> Tensor:
    with torch.inference_mode():
        return torch.full((4,), 2.0)


def chain(x: Tensor, units: tuple[nn.Module, ...]) -> Tensor:
    for unit in units:
        x = unit(x)
    return (x**2).sum()
