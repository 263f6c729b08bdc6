"""Random nets of odd units, random ways to run them: the bits of plain autograd, and nothing left behind.

`python -m tests.unit.runtime.test_odd_units 0 5000` runs as many seeds as you like.
"""

import contextlib
import random
import sys
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from overlap_recompute.runtime import Decision, Journal, Kind, Policy, Runtime, UnitDecision
from tests.unit.runtime.odd_units import ROWS, WIDTH, OddNet
from tests.unit.runtime.support import limited

SEEDS = range(60)


class Stopped(Exception):
    """Raised by a hook in backward."""


def whole(loss: Tensor, x: Tensor, net: OddNet, fill: Callable[[int], None]) -> None:
    loss.backward()


def parts(loss: Tensor, x: Tensor, net: OddNet, fill: Callable[[int], None]) -> None:
    torch.autograd.grad(loss, [x], retain_graph=True, allow_unused=True)
    fill(2)
    loss.backward()


def twice(loss: Tensor, x: Tensor, net: OddNet, fill: Callable[[int], None]) -> None:
    loss.backward(retain_graph=True)
    fill(1)
    loss.backward()


def only_the_input(loss: Tensor, x: Tensor, net: OddNet, fill: Callable[[int], None]) -> None:
    (x.grad,) = torch.autograd.grad(loss, [x], allow_unused=True)


def penalty(loss: Tensor, x: Tensor, net: OddNet, fill: Callable[[int], None]) -> None:
    wanted = [x, *net.parameters()]
    found = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
    rest = [gradient.square().sum() for gradient in found if gradient is not None and gradient.requires_grad]
    if rest:
        torch.stack(rest).sum().backward()


def stopped(loss: Tensor, x: Tensor, net: OddNet, fill: Callable[[int], None]) -> None:
    def stop(_: Tensor) -> None:
        raise Stopped

    hook = x.register_hook(stop)
    with contextlib.suppress(Stopped):
        loss.backward()
    hook.remove()


def unused(loss: Tensor, x: Tensor, net: OddNet, fill: Callable[[int], None]) -> None:
    fill(1)


WAYS = (whole, whole, parts, twice, only_the_input, penalty, stopped, unused)


def results(net: OddNet, seed: int, runtime: Runtime | None) -> list[Tensor]:
    """Losses, gradients and generator states of some steps; what goes wrong is part of it."""
    chance = random.Random(seed)
    found: list[Tensor] = []

    def fill(units: int) -> None:
        if runtime is not None:
            runtime.queue.fill(limited(units))

    for step in range(chance.randint(1, 3)):
        torch.manual_seed(seed + step)
        casts, net.fails_at = chance.random() < 0.2, len(net.plan) // 2 if chance.random() < 0.15 else None
        inputs = [torch.randn(ROWS, WIDTH, requires_grad=True) for _ in range(chance.randint(1, 3))]
        losses: list[Tensor] = []
        for key, x in enumerate(inputs):
            scope = contextlib.nullcontext() if runtime is None else runtime.microbatch(key)
            cast = torch.autocast("cpu", enabled=casts, dtype=torch.bfloat16)
            with contextlib.suppress(ZeroDivisionError), cast, scope:
                losses.append(net(x * 1 if chance.random() < 0.5 else x))
            fill(chance.randint(0, 2))
        found += [loss.detach().clone() for loss in losses]
        for x in inputs[: len(losses)]:
            loss = losses.pop(0)
            way = chance.choice(WAYS)
            fill(chance.randint(0, 2))
            if loss.requires_grad:
                with contextlib.suppress(RuntimeError):  # of torch: a kernel without a second derivative
                    way(loss, x, net, fill)
            del loss
            fill(chance.randint(0, 2))
        if runtime is not None:
            runtime.abort()
        wanted = [*net.parameters(), *inputs]
        found += [torch.zeros(0) if leaf.grad is None else leaf.grad.clone() for leaf in wanted]
        net.zero_grad(set_to_none=True)
        found.append(torch.get_rng_state())
    return found


def check(seed: int) -> int:
    """Compare one net with plain autograd; returns how many replays there were."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    net = OddNet(seed)
    expected = results(net, seed, None)
    dropped = [layer for layer in range(len(net.units)) if chance.random() < 0.7]
    journal = Journal()
    runtime = Runtime(
        Policy(rules=tuple(UnitDecision(unit="layer", layer=n, decision=Decision.RECOMPUTE) for n in dropped)),
        verify=chance.random() < 0.3,
        prefetch_cap_bytes=chance.choice([None, None, 100, 0]),
        backward_order=chance.choice(["fifo", "lifo"]),
        journal=journal,
    )
    runtime.attach(net, ["units.*"])
    found = results(net, seed, runtime)
    runtime.detach()
    assert len(found) == len(expected)
    for first, second in zip(found, expected, strict=True):
        assert torch.equal(first.nan_to_num(), second.nan_to_num())
        assert torch.equal(first.isnan(), second.isnan())
    state = runtime._state
    assert (state.microbatch, state.running, state.replaying) == (None, None, None)
    assert not state.outputs
    assert not state.seen
    ends = Counter((event.kind, *event[1:5]) for event in journal.of(Kind.REPLAY_END, Kind.REPLAY_FAILED))
    return ends.total()


@pytest.mark.filterwarnings("ignore")
def test_odd_units_have_the_bits_of_plain_autograd() -> None:
    assert sum(check(seed) for seed in SEEDS) > 100


if __name__ == "__main__":
    count = sum(check(seed) for seed in range(int(sys.argv[1]), int(sys.argv[2])))
    sys.stdout.write(f"{count} replays, all equal\n")
