import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from megatron.core import tensor_parallel

from megatron.pretrain.checkpoint import random_state
from overlap_recompute.plan.errors import CheckpointError


@pytest.fixture(autouse=True)
def _leave_the_generators_alone() -> Iterator[None]:
    tracker = tensor_parallel.get_cuda_rng_tracker()
    states = tracker.get_states()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    tracker.set_states({})
    tracker.add("model-parallel-rng", 1234567)
    yield
    tracker.set_states(states)
    tracker.seeds_.discard(1234567)
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    np.random.set_state(before[2])


def draw() -> list[object]:
    with tensor_parallel.get_cuda_rng_tracker().fork("model-parallel-rng"):
        forked = torch.rand(3).tolist()
    return [
        *(torch.rand(3).tolist(), torch.randn(3).tolist(), forked),
        *(random.random(), random.gauss(0, 1), random.randrange(10**9)),
        *(np.random.rand(3).tolist(), np.random.randn(3).tolist()),
    ]


@pytest.mark.parametrize("odd", [False, True])
def test_restored_streams_go_on_as_they_did(odd: bool) -> None:
    if odd:  # half of a pair of normal numbers is still to come
        random.gauss(0, 1)
        np.random.randn()
    states = random_state.capture()
    expected = draw()
    assert draw() != expected
    random_state.restore(states)
    assert draw() == expected


def test_states_are_plain_tensors_and_copies() -> None:
    states = random_state.capture()
    assert set(states) >= {"torch", "python", "numpy", "tracker.model-parallel-rng"}
    assert all(state.dim() == 1 and state.dtype in (torch.uint8, torch.int64) for state in states.values())
    kept = {name: state.clone() for name, state in states.items()}
    draw()
    assert all(torch.equal(state, kept[name]) for name, state in states.items())


def test_fresh_seeds_follow_from_seed_position_and_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker_seeds: list[int] = []
    stage = 0
    monkeypatch.setattr(random_state.tensor_parallel, "model_parallel_cuda_manual_seed", tracker_seeds.append)
    monkeypatch.setattr(random_state.parallel_state, "get_pipeline_model_parallel_rank", lambda: stage, raising=True)

    def drawn(seed: int, iteration: int) -> tuple[object, ...]:
        random_state.seed_afresh(seed, iteration)
        return torch.rand(1).item(), random.random(), np.random.rand()

    first = drawn(1, 20)
    assert drawn(1, 20) == first
    others = [drawn(1, 30), drawn(2, 20)]
    stage = 3
    others.append(drawn(1, 20))
    assert all(a != b for other in others for a, b in zip(first, other, strict=True))
    assert tracker_seeds[0] == tracker_seeds[1] == tracker_seeds[4] - 300
    assert len(set(tracker_seeds)) == 4


def test_another_numpy_generator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "get_state", lambda legacy: {"bit_generator": "PCG64"})
    with pytest.raises(CheckpointError, match="PCG64"):
        random_state.capture()
