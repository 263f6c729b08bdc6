"""Replays run with the randomness, autocast, train/eval flags and contexts of the forward pass, and leave no trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from overlap_recompute.runtime import CudaRng, Policy
from overlap_recompute.runtime.rng import RngKeeper
from tests.unit.runtime.models import MlpBlock, Stack
from tests.unit.runtime.support import attached, never, plain_step, runtime_step, same_bits


class Tracker:
    """A second stream of randomness in the manner of model-parallel trackers: swapped in for a while."""

    def __init__(self, seed: int) -> None:
        self.state = torch.Generator().manual_seed(seed).get_state()
        self.sets = 0

    @contextmanager
    def fork(self) -> Iterator[None]:
        before = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(before)

    def get(self) -> Tensor:
        return self.state

    def set(self, state: Tensor) -> None:
        self.sets += 1
        self.state = state

    def same(self, first: Tensor, second: Tensor) -> bool:
        return first is second or torch.equal(first, second)


class TrackedDropout(nn.Module):
    """Dropout that draws from a tracker."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.tracker = tracker

    def forward(self, x: Tensor) -> Tensor:
        with self.tracker.fork():
            return nn.functional.dropout(x, 0.5, self.training)


def test_a_tracker_is_replayed_and_put_back() -> None:
    tracker = Tracker(5)
    model = Stack(*(nn.Sequential(nn.Linear(8, 8), TrackedDropout(tracker), nn.GELU()) for _ in range(3)))
    inputs = [torch.randn(2, 8) for _ in range(2)]
    expected = [*plain_step(model, inputs), tracker.state]
    for fill in (False, True):
        tracker.state = Tracker(5).state
        units = [f"blocks.*.{unit}" for unit in range(3)]
        with attached(model, Policy.recompute_all(), units, rng_providers=[tracker], verify=True) as runtime:
            found = [*runtime_step(model, inputs, runtime, fill=fill), tracker.state]
        assert same_bits(found, expected)


def test_only_units_that_draw_are_replayed_with_their_random_state() -> None:
    model = Stack(*(MlpBlock(8) for _ in range(2)))
    units = ["blocks.*.norm", "blocks.*.act", "blocks.*.drop"]
    with attached(model, Policy.recompute_all(), units) as runtime:
        with runtime.microbatch(0):
            loss = model(torch.randn(2, 8))
        (microbatch,) = runtime.queue.microbatches()
        drawing = {(call.unit.layer, call.unit.name) for call in microbatch.living() if call.rng is not None}
        assert drawing == {(0, "drop"), (1, "drop")}
        loss.backward()
        runtime.step_end()


def test_a_replay_in_the_middle_of_drawing_changes_nothing() -> None:
    model = Stack(MlpBlock(8))
    torch.manual_seed(0)
    with torch.no_grad():
        expected = torch.rand(3)
    with attached(model, Policy.recompute_all(), ["blocks.*.drop", "blocks.*.act"]) as runtime:
        with runtime.microbatch(0):
            loss = model(torch.randn(2, 8))
        torch.manual_seed(0)
        first = torch.rand(1)
        assert runtime.queue.fill(never).units == 2
        assert torch.equal(torch.cat([first, torch.rand(2)]), expected)
        loss.backward()


def test_a_unit_whose_caller_puts_the_random_state_back() -> None:
    model = nn.ModuleList([nn.Dropout(0.5), nn.Dropout(0.5)])
    x = torch.randn(4, 8, requires_grad=True)

    def loss() -> Tensor:
        torch.manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            h = model[0](x * 2)
        return (model[1](h * 1.5) ** 2).sum()

    loss().backward()
    expected, x.grad = x.grad, None
    with attached(model, Policy.recompute_all(), ["*"]) as runtime:
        with runtime.microbatch(0):
            value = loss()
        value.backward()
        runtime.step_end()
    assert torch.equal(x.grad, expected)


class FakeGenerator:
    """The four methods of a CUDA generator that `CudaRng` uses."""

    def __init__(self) -> None:
        self.seed, self.offset = 1, 0

    def initial_seed(self) -> int:
        return self.seed

    def get_offset(self) -> int:
        return self.offset

    def manual_seed(self, seed: int) -> None:
        self.seed, self.offset = seed, 0

    def set_offset(self, offset: int) -> None:
        self.offset = offset


def test_the_state_of_a_cuda_generator_is_its_seed_and_offset() -> None:
    generator = FakeGenerator()
    keeper = RngKeeper([CudaRng(generator)])  # type: ignore[arg-type]
    before = keeper.snapshot()
    assert keeper.changed(before, keeper.snapshot()) is None
    generator.offset = 8
    drawn = keeper.changed(before, keeper.snapshot())
    assert drawn is not None
    assert [state for _, state in drawn] == [(1, 0)]
    generator.manual_seed(2)
    generator.offset = 40
    present = keeper.enter(drawn)
    assert (generator.seed, generator.offset) == (1, 0)
    keeper.leave(present)
    assert (generator.seed, generator.offset) == (2, 40)


class Scale:
    """A context of the user: multiplies by what is in force."""

    def __init__(self) -> None:
        self.factor, self.entered = 1.0, 0

    def capture(self) -> Any:
        return None if self.factor == 1.0 else self.factor

    @contextmanager
    def enter(self, captured: float) -> Iterator[None]:
        before, self.factor = self.factor, captured
        self.entered += 1
        try:
            yield
        finally:
            self.factor = before


class Scaled(nn.Module):
    """Depends on the user's context."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale, self.weight = scale, nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * self.scale.factor


def test_contexts_of_the_user_are_entered_again() -> None:
    scale = Scale()
    model = nn.ModuleList([Scaled(scale), Scaled(scale)])
    with attached(model, Policy.recompute_all(), ["*"], context_providers=[scale], verify=True) as runtime:
        with runtime.microbatch(0):
            h = model[0](torch.ones(2, 4))
            with scale.enter(3.0):
                h = model[1](h)
            loss = (h**2).sum()
        scale.entered = 0
        loss.backward()
        runtime.step_end()
    assert scale.entered == 1, "a unit that ran outside of the context does not enter it"
    assert scale.factor == 1.0
    assert torch.equal(model[0].weight.grad, torch.full((4,), 2 * 2 * 9.0))


def test_train_and_eval_flags_are_those_of_the_forward_pass() -> None:
    model = Stack(*(MlpBlock(8) for _ in range(2)))
    x = torch.randn(2, 8)
    model.blocks[1].drop.eval()
    expected = plain_step(model, [x])
    with attached(model, Policy.recompute_all(), ["blocks.*.drop", "blocks.*.act"], verify=True) as runtime:
        torch.manual_seed(0)
        with runtime.microbatch(0):
            loss = model(x)
        model.eval()
        loss.backward()
        runtime.step_end()
        assert not any(module.training for module in model.modules())
    model.train()
    assert same_bits([p.grad for p in model.parameters()], expected[1:-1])


class CacheSpy(nn.Module):
    """Writes down whether autocast would share its casts."""

    def __init__(self, found: list[tuple[bool, bool]]) -> None:
        super().__init__()
        self.linear, self.found = nn.Linear(4, 4), found

    def forward(self, x: Tensor) -> Tensor:
        self.found.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        return self.linear(x)


def test_a_replay_shares_no_casts_with_what_runs_around_it() -> None:
    found: list[tuple[bool, bool]] = []
    model = nn.ModuleList([CacheSpy(found)])
    with attached(model, Policy.recompute_all(), ["*"], verify=True) as runtime:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with runtime.microbatch(0):
                loss = (model[0](torch.randn(2, 4)) ** 2).sum()
            runtime.queue.fill(never)
        loss.backward()
        runtime.step_end()
    assert found == [(True, True), (True, False)]


def test_autocast_is_left_as_it_was_found() -> None:
    model = Stack(*(MlpBlock(8) for _ in range(2)))
    x = torch.randn(2, 8)
    with attached(model, Policy.recompute_all(), ["blocks.*.norm", "blocks.*.fc1"], verify=True) as runtime:
        # The forward pass runs in full precision, the window is opened under autocast.
        with runtime.microbatch(0):
            loss = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert runtime.queue.fill(never).units == 4
            assert torch.is_autocast_enabled("cpu")
            assert torch.is_autocast_cache_enabled()
        loss.backward()
        # And the other way round.
        with torch.autocast("cpu", dtype=torch.bfloat16), runtime.microbatch(1):
            loss = model(x)
        assert runtime.queue.fill(never).units == 4
        assert not torch.is_autocast_enabled("cpu")
        loss.backward()
        runtime.step_end()
