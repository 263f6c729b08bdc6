"""Every random state that a rank's training depends on, as plain tensors (nothing in it needs unpickling).

| stream | drives |
|---|---|
| `torch` | the CPU generator; on the CPU platform also dropout outside tensor-parallel regions |
| `cuda` | the current CUDA device's generator, where there is one |
| `tracker.<name>` | Megatron-Core's generators for tensor-, data- and expert-parallel regions |
| `python`, `numpy` | the global generators of `random` and `numpy.random` |
"""

import hashlib
import random
from collections.abc import Mapping

import numpy as np
import torch
from megatron.core import parallel_state, tensor_parallel

from overlap_recompute.plan.errors import CheckpointError

_TRACKER_PREFIX = "tracker."
_NUMPY_KIND = "MT19937"
_SEED_RANGE = 1 << 30


def capture() -> dict[str, torch.Tensor]:
    """Copy this rank's random states: name -> 1-D CPU tensor (uint8 of torch's generators, int64 of the others)."""
    states = {"torch": torch.get_rng_state(), "python": _python_state(), "numpy": _numpy_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    for name, state in tensor_parallel.get_cuda_rng_tracker().get_states().items():
        # A generator stands in place of a tensor when the states are made for CUDA graphs.
        states[_TRACKER_PREFIX + name] = state.get_state() if isinstance(state, torch.Generator) else state
    return {name: state.detach().cpu().clone() for name, state in states.items()}


def restore(states: Mapping[str, torch.Tensor]) -> None:
    """Put back what `capture` returned on this rank of the same layout."""
    torch.set_rng_state(states["torch"])
    _set_python_state(states["python"])
    _set_numpy_state(states["numpy"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    tracker = tensor_parallel.get_cuda_rng_tracker()
    present = tracker.get_states()
    for name, state in states.items():
        if name.startswith(_TRACKER_PREFIX):
            _put(present, name.removeprefix(_TRACKER_PREFIX), state)
    tracker.set_states(present)


def seed_afresh(seed: int, iteration: int) -> None:
    """Seed every stream from the run's `seed` and the position, where the saved states cannot be used.

    The rule: a base seed is hashed from (`seed`, `iteration`), so that a resumed run does not draw the numbers of its
    first iterations again; from it, streams are seeded as Megatron-LM seeds them: pipeline stages 100 apart, equal over
    data-parallel ranks, and Megatron-Core's tracker tells tensor- and expert-parallel ranks apart.
    """
    digest = hashlib.sha256(f"{seed} {iteration}".encode()).digest()
    base = int.from_bytes(digest[:8], "big") % _SEED_RANGE
    rank_seed = base + 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(rank_seed)
    np.random.seed(rank_seed)
    torch.manual_seed(rank_seed)
    tensor_parallel.model_parallel_cuda_manual_seed(rank_seed)


def _put(present: dict[str, torch.Tensor | torch.Generator], name: str, state: torch.Tensor) -> None:
    current = present.get(name)
    if isinstance(current, torch.Generator):
        current.set_state(state)
    else:
        present[name] = state.clone()


def _python_state() -> torch.Tensor:
    version, words, gauss = random.getstate()
    return torch.tensor([version, *words, gauss is not None, _bits(gauss or 0.0)], dtype=torch.int64)


def _set_python_state(state: torch.Tensor) -> None:
    version, *words, has_gauss, gauss = state.tolist()
    random.setstate((version, tuple(words), _number(gauss) if has_gauss else None))


def _numpy_state() -> torch.Tensor:
    state = np.random.get_state(legacy=False)
    if state["bit_generator"] != _NUMPY_KIND:
        raise CheckpointError(
            found=f"numpy's global generator is a {state['bit_generator']}",
            expected=_NUMPY_KIND,
            next_step="give your code a generator of its own (numpy.random.default_rng), or use --no-save-rng",
        )
    words = [int(word) for word in state["state"]["key"]]
    tail = [state["state"]["pos"], state["has_gauss"], _bits(state["gauss"])]
    return torch.tensor([*words, *tail], dtype=torch.int64)


def _set_numpy_state(state: torch.Tensor) -> None:
    *words, position, has_gauss, gauss = state.tolist()
    key = np.array(words, dtype=np.uint32)
    np.random.set_state((_NUMPY_KIND, key, position, has_gauss, _number(gauss)))


def _bits(number: float) -> int:
    """The bits of a float as an integer, so that it survives in an integer tensor."""
    return int(torch.tensor(number, dtype=torch.float64).view(torch.int64))


def _number(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int64).view(torch.float64))
