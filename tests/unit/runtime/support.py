"""Running one step with and without the runtime, and counting live storages."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from overlap_recompute.runtime import Policy, Runtime

Step = Callable[[], tuple[Tensor, list[Tensor | None]]]


def never() -> bool:
    """A window that does not close."""
    return False


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """The loss, every gradient, and the generator's state after the step."""
    found = [loss.detach().clone()]
    found += [torch.zeros(0) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return [*found, torch.get_rng_state()]


def plain_step(model: nn.Module, inputs: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """Forward of all microbatches, then backward of all, with plain autograd."""
    torch.manual_seed(seed)
    losses = [model(x) for x in inputs]
    for loss in losses:
        loss.backward()
    return gradients(model, torch.stack([loss.detach() for loss in losses]))


def runtime_step(
    model: nn.Module, inputs: Sequence[Tensor], runtime: Runtime, seed: int = 0, fill: bool = False
) -> list[Tensor]:
    """The same under `runtime`; with `fill`, windows between the forward and the backward passes."""
    torch.manual_seed(seed)
    losses = []
    for key, x in enumerate(inputs):
        with runtime.microbatch(key):
            losses.append(model(x))
        if fill:
            runtime.queue.fill(limited(3))
    for loss in losses:
        loss.backward()
        if fill:
            runtime.queue.fill(limited(2))
    runtime.step_end()
    return gradients(model, torch.stack([loss.detach() for loss in losses]))


def limited(units: int) -> Callable[[], bool]:
    """A window that closes after so many units."""
    left = iter(range(units))
    return lambda: next(left, None) is None


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are equal, without tolerance."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@contextmanager
def attached(model: nn.Module, policy: Policy, units: Sequence[str], **options: Any) -> Iterator[Runtime]:
    """A runtime that is attached, and detached at the end."""
    runtime = Runtime(policy, **options)
    runtime.attach(model, units)
    try:
        yield runtime
    finally:
        runtime.detach()


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until they die: what an allocator would see."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is not None and known() is storage:
            return

        def died(_: Any) -> None:
            self.live_bytes -= nbytes

        self._known[key] = weakref.ref(storage, died)
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
