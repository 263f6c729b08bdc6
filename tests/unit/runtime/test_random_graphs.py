"""Random policies on random graphs of small modules: always the same bits, always one replay, never a byte left."""

from collections import Counter
from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from overlap_recompute.runtime import Decision, Journal, Kind, Policy, UnitDecision
from tests.unit.runtime.support import attached, limited, plain_step, runtime_step, same_bits

WIDTH = 6


class Split(nn.Module):
    """Two views of one storage, put together the other way round."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (x * y).split(WIDTH // 2, -1)
        return second, first


class Mix(nn.Module):
    """Two arguments, one output."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.softmax(x, -1) * y


class Same(nn.Module):
    """An output that is its input."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x


class Flip(nn.Module):
    """An output that is a view of its input."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y.view(-1, WIDTH)[:, :].view_as(x)


class OnFirst(nn.Module):
    """A module of one argument."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(x)


MAKERS = (
    lambda: OnFirst(nn.Linear(WIDTH, WIDTH)),
    lambda: OnFirst(nn.LayerNorm(WIDTH)),
    lambda: OnFirst(nn.GELU()),
    lambda: OnFirst(nn.Dropout(0.4)),
    lambda: OnFirst(nn.Sequential(nn.Linear(WIDTH, 5), nn.SiLU(), nn.Dropout(0.1), nn.Linear(5, WIDTH))),
    Split,
    Mix,
    Same,
    Flip,
)


class Node(NamedTuple):
    """One module call: which module, and which earlier values it reads."""

    kind: int
    first: int
    second: int
    repeat: bool
    in_place: bool


class Graph(nn.Module):
    """Runs nodes in order; every value may be read again later."""

    def __init__(self, nodes: list[Node]) -> None:
        super().__init__()
        self.nodes = nodes
        self.units = nn.ModuleList(MAKERS[node.kind]() for node in nodes)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for node, unit in zip(self.nodes, self.units, strict=True):
            for _ in range(2 if node.repeat else 1):
                result = unit(values[node.first % len(values)], values[node.second % len(values)])
                result = torch.cat(result, -1) if isinstance(result, tuple) else result
                # Operations outside of the units save dropped outputs, and views of them.
                value = functional.silu(result.t()).t() if node.in_place else result * 1.5
                values.append(value.relu_() if node.in_place else value)
        return sum(value.square().mean() for value in values[-3:])  # type: ignore[return-value]


nodes = st.builds(
    Node,
    kind=st.integers(0, len(MAKERS) - 1),
    first=st.integers(0, 9),
    second=st.integers(0, 9),
    repeat=st.booleans(),
    in_place=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(nodes, min_size=1, max_size=8), st.integers(0, 2**8 - 1), st.integers(1, 3), st.booleans())
def test_any_policy_on_any_graph(graph: list[Node], dropped: int, microbatches: int, verify: bool) -> None:
    torch.manual_seed(3)
    model = Graph(graph)
    inputs = [torch.randn(3, WIDTH, requires_grad=True) for _ in range(microbatches)]
    policy = Policy(
        rules=tuple(
            UnitDecision(unit="layer", layer=layer, decision=Decision.RECOMPUTE)
            for layer in range(len(graph))
            if dropped >> layer & 1
        )
    )
    expected = plain_step(model, inputs)
    expected += [x.grad.clone() for x in inputs]  # type: ignore[union-attr]
    journal = Journal()
    for fill in (False, True):
        for x in inputs:
            x.grad = None
        journal.clear()
        with attached(model, policy, ["units.*"], journal=journal, verify=verify) as runtime:
            found = runtime_step(model, inputs, runtime, fill=fill)
            found += [x.grad for x in inputs]  # type: ignore[misc]
            ledger = runtime.ledger
            counts = (ledger.kept_bytes, ledger.dropped_bytes, ledger.recomputed_bytes, ledger.prefetched_bytes)
        assert same_bits(found, expected)
        assert counts == (0, 0, 0, 0)
        assert set(Counter(event[1:5] for event in journal.of(Kind.REPLAY_END)).values()) <= {1}


@settings(max_examples=15, deadline=None)
@given(st.lists(nodes, min_size=2, max_size=8), st.integers(0, 400), st.integers(0, 6))
def test_the_cap_holds_on_any_graph(graph: list[Node], cap_bytes: int, units: int) -> None:
    torch.manual_seed(3)
    model = Graph(graph)
    with attached(model, Policy.recompute_all(), ["units.*"], prefetch_cap_bytes=cap_bytes) as runtime:
        with runtime.microbatch(0):
            loss = model(torch.randn(3, WIDTH, requires_grad=True))
        fill = runtime.queue.fill(limited(units))
        assert runtime.ledger.prefetched_bytes <= fill.nbytes <= cap_bytes
        assert fill.units <= units
        loss.backward()
        report = runtime.step_end()
    assert report.hidden_replays == fill.units
    assert report.prefetched_peak_bytes <= cap_bytes
