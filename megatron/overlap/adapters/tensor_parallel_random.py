"""Hooks megatron/core/tensor_parallel/random.py of megatron-core 0.16.1."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from megatron.core.tensor_parallel import random as upstream
from torch import Tensor

from megatron.overlap.replacements import require_shape
from megatron.pretrain.platform.seam import Expected
from overlap_recompute.plan.errors import ConfigError

_EXPECTED = (
    Expected(name="CudaRNGStatesTracker.get_states", parameters=("self",)),
    Expected(name="CudaRNGStatesTracker.set_states", parameters=("self", "states")),
    Expected(name="CudaRNGStatesTracker.fork", parameters=("self", "name")),
)


class TrackerRng:
    """Megatron's tracker of generator states, as a source of randomness for replays.

    A fork leaves a new tensor in the tracker and never writes into an old one, so a state is the dictionary itself
    and what nobody forked is recognized by identity.
    """

    __slots__ = ("_tracker",)

    def __init__(self, tracker: Callable[[], Any] = upstream.get_cuda_rng_tracker) -> None:
        """`tracker`: returns the tracker; called once.

        Raises:
            ConfigError: the tracker keeps generators, which change in place.
        """
        require_shape(upstream, "replays attention dropout", *_EXPECTED)
        self._tracker = tracker()
        kinds = {type(state).__name__ for state in self._tracker.get_states().values()}
        if kinds - {"Tensor"}:
            raise ConfigError(
                f"--overlap-recompute with an RNG tracker of {', '.join(sorted(kinds))}",
                "a tracker that keeps states as tensors",
                "leave out the RNG tracker for CUDA graphs",
            )

    def get(self) -> Mapping[str, Tensor]:
        """The states by name."""
        states: Mapping[str, Tensor] = self._tracker.get_states()
        return states

    def set(self, state: Mapping[str, Tensor]) -> None:
        """Go back to these states."""
        self._tracker.set_states(dict(state))

    def same(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
        """Whether nothing was drawn in between."""
        return first.keys() == second.keys() and all(
            state is second[name] or torch.equal(state, second[name]) for name, state in first.items()
        )
