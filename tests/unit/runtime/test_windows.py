"""Windows: where a fill may run and where it may not, and what ends it."""

import pytest
import torch
from torch import Tensor, nn

from overlap_recompute.runtime import Fill, Journal, Kind, Policy, Runtime, Stop
from tests.unit.runtime.models import MlpBlock, Stack
from tests.unit.runtime.support import attached, limited, never, plain_step, same_bits

UNITS = ["blocks.*.norm", "blocks.*.fc1", "blocks.*.act", "blocks.*.drop"]


class Reduce(torch.autograd.Function):
    """A collective in the manner of model-parallel layers: its forward runs without gradients, and opens a window."""

    @staticmethod
    def forward(ctx: object, x: Tensor, window: object) -> Tensor:
        ctx.window = window  # type: ignore[attr-defined]
        window()  # type: ignore[operator]
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ctx.window()  # type: ignore[attr-defined]
        return grad.clone(), None


class Windowed(nn.Module):
    """A block whose output is reduced, in forward and in backward."""

    def __init__(self, block: nn.Module, window: object) -> None:
        super().__init__()
        self.block, self.window = block, window

    def forward(self, x: Tensor) -> Tensor:
        return Reduce.apply(self.block(x), self.window)


def windowed(window: object) -> Stack:
    return Stack(*(Windowed(MlpBlock(8), window) for _ in range(3)))


def run(model: nn.Module, runtime: Runtime, inputs: list[Tensor]) -> list[Tensor]:
    """1F1B of one stage: while microbatch k + 1 runs forward, windows prepare microbatch k."""
    torch.manual_seed(0)
    losses: list[Tensor] = []
    for key, x in enumerate(inputs):
        with runtime.microbatch(key):
            losses.append(model(x))
    for loss in losses:
        loss.backward()
    runtime.step_end()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [torch.stack(losses).detach(), *found]


def test_windows_in_forward_and_backward_prepare_the_next_microbatch() -> None:
    fills: list[Fill] = []
    runtimes: list[Runtime] = []
    units = [unit.replace("blocks.*.", "blocks.*.block.") for unit in UNITS]

    def window() -> None:
        if runtimes:
            fills.append(runtimes[0].queue.fill(limited(2)))

    model, journal = windowed(window), Journal()
    inputs = [torch.randn(2, 8) for _ in range(3)]
    torch.manual_seed(0)
    losses = [model(x) for x in inputs]
    for loss in losses:
        loss.backward()
    expected = [torch.stack(losses).detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    model.zero_grad()
    with attached(model, Policy.recompute_all(), units, journal=journal, verify=True) as runtime:
        runtimes.append(runtime)
        assert same_bits(run(model, runtime, inputs), expected)
        runtimes.clear()
    assert fills[0] == Fill(0, 0, Stop.EMPTY), "nothing can be prepared while the first microbatch runs"
    assert any(fill.units == 2 for fill in fills)
    assert Stop.REFUSED not in {fill.stop for fill in fills}
    replayed = list(journal.of(Kind.REPLAY_END))
    assert len(replayed) == 3 * 3 * 4
    # While microbatch 1 runs forward, units of microbatch 0 come back, the latest layer first.
    hidden = [event for event in replayed if event.hidden]
    assert {event.microbatch for event in hidden[:6]} == {0}
    assert [event.layer for event in hidden[:4]] == [2, 2, 2, 2]


def test_a_window_inside_a_dropped_unit() -> None:
    runtimes: list[Runtime] = []
    model = windowed(lambda: runtimes and runtimes[0].queue.fill(limited(1)))
    inputs = [torch.randn(2, 8) for _ in range(3)]
    expected = plain_step(model, inputs)
    units, journal = ["blocks.*", "blocks.*.block.norm"], Journal()
    with attached(model, Policy.recompute_all(), units, verify=True, journal=journal) as runtime:
        runtimes.append(runtime)
        found = run(model, runtime, inputs)
        runtimes.clear()
    assert same_bits(found[:-1], expected[: len(found) - 1])
    assert {event.unit for event in journal.events} == {"layer"}, "a replay is not recorded, whatever runs around it"


def test_no_fill_in_a_replay() -> None:
    fills: list[tuple[bool, Fill]] = []
    runtimes: list[Runtime] = []

    def window() -> None:
        if runtimes:
            replaying = runtimes[0].replaying
            fills.append((replaying, runtimes[0].queue.fill(never)))

    model = windowed(window)
    with attached(model, Policy.recompute_all(), ["blocks.*"]) as runtime:
        runtimes.append(runtime)
        with runtime.microbatch(0):
            loss = model(torch.randn(2, 8))
        loss.backward()
        runtime.step_end()
    in_replay = [fill for replaying, fill in fills if replaying]
    assert in_replay
    assert {fill.stop for fill in in_replay} == {Stop.REFUSED}


def test_no_fill_in_an_evaluation() -> None:
    model = Stack(MlpBlock(8))
    x = torch.randn(2, 8)
    with attached(model, Policy.recompute_all(), UNITS) as runtime:
        with runtime.microbatch(0):
            loss = model(x)
        with torch.no_grad():
            assert runtime.queue.fill(never).stop is Stop.REFUSED
        with torch.inference_mode():
            assert runtime.queue.fill(never).stop is Stop.REFUSED
        with torch.no_grad(), runtime.microbatch("evaluation"):
            model(x)
            assert runtime.queue.fill(never).stop is Stop.REFUSED
        # A region without gradients in the middle of a training forward pass is not an evaluation.
        with runtime.microbatch(1):
            second = model(x)
            with torch.no_grad():
                assert runtime.queue.fill(limited(1)).units == 1
        (loss + second).backward()
        runtime.step_end()


def test_what_ends_a_fill() -> None:
    model = Stack(MlpBlock(8))
    asked: list[int] = []

    def closes_after_two() -> bool:
        asked.append(len(asked))
        return len(asked) > 2

    with attached(model, Policy.recompute_all(), UNITS) as runtime:
        with runtime.microbatch(0):
            loss = model(torch.randn(2, 8))
        assert runtime.queue.fill(lambda: True) == Fill(0, 0, Stop.CLOSED)
        assert runtime.queue.fill(never, budget_bytes=0) == Fill(0, 0, Stop.CAP)
        fill = runtime.queue.fill(closes_after_two)
        assert (fill.units, fill.stop, len(asked)) == (2, Stop.CLOSED, 3)
        assert runtime.queue.fill(never).stop is Stop.EMPTY
        loss.backward()
        report = runtime.step_end()
    assert (report.hidden_replays, report.exposed_replays) == (4, 0)
    assert report.hidden_us > 0


def test_a_plan_can_say_what_to_launch() -> None:
    model, journal = Stack(MlpBlock(8), MlpBlock(8)), Journal()
    with attached(model, Policy.recompute_all(), UNITS, journal=journal) as runtime:
        with runtime.microbatch(0):
            loss = model(torch.randn(2, 8))
        runtime.queue.fill(never, only={(0, "fc1"), (1, "norm")})
        launched = [(event.layer, event.unit) for event in journal.of(Kind.REPLAY_END)]
        assert launched == [(1, "norm"), (0, "norm"), (0, "fc1")], "what it needs comes with it"
        loss.backward()
        runtime.step_end()


def test_the_cost_of_a_fill_does_not_grow_with_finished_microbatches() -> None:
    model = Stack(MlpBlock(8))
    with attached(model, Policy.recompute_all(), UNITS) as runtime:
        for key in range(20):
            with runtime.microbatch(key):
                loss = model(torch.randn(2, 8))
            runtime.queue.fill(limited(1))
            loss.backward()
        assert runtime.queue.fill(never).stop is Stop.EMPTY
        assert len(runtime.queue._ready) <= 1, "those that are done are forgotten as the queue goes on"
        assert not any(microbatch.calls for microbatch in runtime.queue.microbatches())
        assert len(runtime.step_end().layers) == 40


@pytest.mark.parametrize("keys", [("a", "b"), ((0, 1), (1, 1)), (3, 3.5)])
def test_keys_of_microbatches_are_free(keys: tuple[object, object]) -> None:
    model = Stack(MlpBlock(8))
    with attached(model, Policy.recompute_all(), UNITS, backward_order="lifo") as runtime:
        losses = []
        for key in keys:
            with runtime.microbatch(key):
                losses.append(model(torch.randn(2, 8)))
        sum(losses).backward()
        assert {layer.microbatch for layer in runtime.step_end().layers} == set(keys)
