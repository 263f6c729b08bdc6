"""Megatron's tracker of generator states as a source of randomness for replays."""

import pytest
import torch
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

from megatron.overlap.adapters.tensor_parallel_random import TrackerRng
from overlap_recompute.plan.errors import ConfigError


def tracker_with(*names: str) -> CudaRNGStatesTracker:
    tracker = CudaRNGStatesTracker()
    for seed, name in enumerate(names):
        tracker.add(name, seed)
    return tracker


def draw(tracker: CudaRNGStatesTracker, name: str) -> torch.Tensor:
    with tracker.fork(name):
        return torch.rand(4)


def test_going_back_draws_the_same_again() -> None:
    tracker = tracker_with("attention", "experts")
    source = TrackerRng(lambda: tracker)
    before = source.get()
    drawn = [draw(tracker, "attention") for _ in range(2)]
    after = source.get()
    assert not source.same(before, after)
    source.set(before)
    assert torch.equal(draw(tracker, "attention"), drawn[0])
    source.set(before)
    assert [draw(tracker, "attention").tolist() for _ in range(2)] == [values.tolist() for values in drawn]
    assert source.same(source.get(), after), "the states that were taken are as they were"


def test_a_fork_that_draws_nothing_changes_nothing() -> None:
    tracker = tracker_with("attention")
    source = TrackerRng(lambda: tracker)
    before = source.get()
    with tracker.fork("attention"):
        pass
    assert source.same(before, source.get())
    tracker.add("later", 9)
    assert not source.same(before, source.get())


def test_states_that_change_in_place_are_refused() -> None:
    tracker = tracker_with("attention")
    tracker.states_["graphs"] = torch.Generator()
    with pytest.raises(ConfigError, match="an RNG tracker of Generator, Tensor"):
        TrackerRng(lambda: tracker)
