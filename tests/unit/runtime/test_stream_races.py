"""Lane and compute on streams with vector clocks: whatever is read, written or used again is behind an event."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overlap_recompute import ops
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.runtime import (
    Decision,
    Policy,
    ReplayError,
    Runtime,
    StreamLane,
    UnitDecision,
    lanes,
    replay,
    scope,
)
from overlap_recompute.runtime.home_stream import HomeStream, home_stream
from tests.unit.runtime.stream_races import ClockedStreams, RaceError, Races
from tests.unit.runtime.support import limited, never
from tests.unit.runtime.test_random_graphs import MAKERS, WIDTH, Graph, Node

CPU = torch.device("cpu")


def lane_on(streams: ClockedStreams) -> StreamLane:
    return StreamLane(ops.Lane(CPU, streams=streams))


def random_steps(seed: int) -> tuple[int, int]:
    """Three steps of a random model under a random policy, with windows everywhere; hidden replays and checks."""
    chance = random.Random(seed)
    nodes = [
        Node(
            kind=chance.randrange(len(MAKERS)),
            first=chance.randrange(10),
            second=chance.randrange(10),
            repeat=chance.random() < 0.3,
            in_place=chance.random() < 0.3,
        )
        for _ in range(chance.randint(1, 9))
    ]
    streams = ClockedStreams(seed, passing=chance.choice([0.0, 0.3, 1.0]))
    dropped = [layer for layer in range(len(nodes)) if chance.random() < 0.8]
    rules = tuple(UnitDecision(unit="layer", layer=layer, decision=Decision.RECOMPUTE) for layer in dropped)
    model = Graph(nodes)
    runtime = Runtime(Policy(rules=rules), lane=lane_on(streams))
    runtime.attach(model, ["units.*"])
    hidden = 0
    with Races(streams) as races:
        for _ in range(3):
            losses: list[Tensor | None] = []
            for key in range(chance.randint(1, 3)):
                x = torch.randn(3, WIDTH, requires_grad=True) * 1
                x.register_hook(lambda _: runtime.queue.fill(limited(chance.randint(0, 2))) and None)
                with runtime.microbatch(key):
                    losses.append(model(x))
                del x
                runtime.queue.fill(limited(chance.randint(0, 3)))
            for position, loss in enumerate(losses):
                losses[position] = None
                runtime.queue.fill(limited(chance.randint(0, 2)))
                if chance.random() < 0.85:  # the others are never used
                    loss.backward()  # type: ignore[union-attr]
                del loss
                runtime.queue.fill(limited(chance.randint(0, 2)))
            hidden += runtime.step_end().hidden_replays
            model.zero_grad(set_to_none=True)
    runtime.detach()
    return hidden, races.checks


def test_no_race_in_random_steps() -> None:
    hidden, checks = (sum(found) for found in zip(*(random_steps(seed) for seed in range(12)), strict=True))
    assert hidden > 50
    assert checks > 5_000


@pytest.mark.parametrize("broken", ["guards nothing", "follows nobody", "is not waited for"])
def test_the_detector_finds_what_a_lane_must_not_leave_out(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "guards nothing":
        run = replay.Replayer._replay
        monkeypatch.setattr(replay.Replayer, "_replay", lambda *arguments: (run(*arguments), None)[1])
    elif broken == "follows nobody":
        monkeypatch.setattr(ops.Lane, "open_window", lambda self, name=0, compute=None: None)
    else:
        monkeypatch.setattr(lanes.StreamFence, "wait", lambda self: True)
    found = 0
    for seed in range(8):
        try:
            random_steps(seed)
        except (RaceError, ReplayError) as error:
            found += "without an event behind" in str(error)
    assert found > 1


class Enter(torch.autograd.Function):
    """Goes to another stream; autograd leaves it here in backward, and lets compute wait when it adds the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, streams: ClockedStreams) -> Tensor:
        ctx.streams = streams
        streams.follow("other", "compute")
        streams.stack.append("other")
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.streams.stack.pop()
        return gradient, None


class Leave(torch.autograd.Function):
    """Comes back to compute."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, streams: ClockedStreams) -> Tensor:
        ctx.streams = streams
        streams.stack.pop()
        streams.follow("compute", "other")
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.streams.follow("other", "compute")
        ctx.streams.stack.append("other")
        return gradient, None


class Joined(torch.autograd.Function):
    """Where autograd lets compute wait, because gradients of both streams come together."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, streams: ClockedStreams) -> Tensor:
        ctx.streams = streams
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.streams.follow("compute", "other")
        return gradient, None


def two_streams(fills: bool) -> tuple[int, int]:
    """A dropped output that a branch on another stream reads, too, and reads first in backward."""
    streams = ClockedStreams()
    model = nn.ModuleList([nn.LayerNorm(4), nn.Softmax(-1)])
    runtime = Runtime(Policy.recompute_all(), lane=lane_on(streams))
    runtime.attach(model, ["*"])
    with Races(streams):
        with runtime.microbatch(0):
            normal = model[0](torch.randn(3, 4, requires_grad=True) * 1)
            here = Joined.apply(normal, streams).square()
            away = Enter.apply(normal, streams)
            away = Leave.apply(model[1](away.square()), streams)
            loss = (here + away).sum()
        dropped_bytes = runtime.ledger.dropped_bytes
        if fills:
            runtime.queue.fill(never)
        loss.backward()
        # Memory that another stream reads must outlive it: whoever uses two streams takes care of that.
        del loss, normal, here, away
        report = runtime.step_end()
    assert streams.stack == ["compute"]
    return dropped_bytes, report.exposed_replays + report.hidden_replays


@pytest.mark.parametrize("fills", [False, True], ids=["on demand", "filled"])
def test_what_another_stream_reads_is_kept(fills: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    streams_of: list[ClockedStreams] = []
    make = ClockedStreams.__init__

    def noted(self: ClockedStreams, *arguments: Any) -> None:
        make(self, *arguments)
        streams_of.append(self)

    monkeypatch.setattr(ClockedStreams, "__init__", noted)
    monkeypatch.setattr(scope, "home_stream", lambda: HomeStream(streams_of[-1].current))
    dropped_bytes, replays = two_streams(fills)
    assert dropped_bytes == 48 + 2 * 12, "what compute reads of the norm: its output, and its statistics"
    assert replays == 1, "a unit that runs on the other stream keeps what it saves"


def test_the_lane_follows_whoever_has_read_its_results() -> None:
    streams = ClockedStreams()
    model = nn.ModuleList([nn.Softmax(-1)])
    runtime = Runtime(Policy.recompute_all(), lane=lane_on(streams))
    runtime.attach(model, ["*"])
    with Races(streams):
        for _ in range(2):
            x = torch.randn(3, 4, requires_grad=True)
            with runtime.microbatch(0):
                loss = model[0](x).square().sum()
            with runtime.microbatch(1):
                later = model[0](x).square().sum()
            runtime.queue.fill(limited(1))
            streams.follow("other", "compute")
            with streams.use("other"):
                loss.backward()
            runtime.queue.fill(limited(1))  # takes the memory of what the other stream may still read
            streams.follow("compute", "other")
            x.grad = None
            later.backward()
            del loss, later
            runtime.step_end()


def test_fills_from_another_stream_give_memory_back_to_that_of_the_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = ClockedStreams()
    monkeypatch.setattr(scope, "home_stream", lambda: HomeStream(streams.current))
    model = nn.ModuleList([nn.LayerNorm(4, elementwise_affine=False)])
    runtime = Runtime(Policy.recompute_all(), lane=lane_on(streams))
    runtime.attach(model, ["*"])
    with Races(streams):
        with runtime.microbatch(0):
            loss = model[0](torch.randn(3, 4, requires_grad=True) * 1).square().sum()
        with streams.use("other"):
            assert runtime.queue.fill(never).units == 1
        loss.backward()
        runtime.step_end()


def test_a_capture_into_a_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert home_stream() is None or torch.cuda.is_initialized()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ConfigError, match="captured into a CUDA graph"):
        home_stream()
