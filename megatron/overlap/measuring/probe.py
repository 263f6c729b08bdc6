"""What cannot be timed, seen once in one forward pass: who reads what, who is random, and what is kept.

NOTE [ storages ]
1. A storage is made by the unit during whose call it is first seen, as an output or as something saved; else by none.
2. It is held if autograd saves it, and read by the units that take it as an argument. An output that nobody saves or
   reads is not kept and not listed.
3. It belongs to the layer that sees it first: a layer's input to the layer, its output to the next one.
4. Parameters and buffers are left out. Storages are held while the probe looks, so that no address is used twice.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from megatron.overlap.measuring.passes import BEFORE, BEHIND
from overlap_recompute.plan.layer_units import LAYER_UNITS, kind_of
from overlap_recompute.plan.storages import StorageRow

Result = TypeVar("Result")


@dataclass(slots=True, kw_only=True)
class Found:
    """What was seen of one unit of a layer; of all experts' together."""

    reads: set[str] = field(default_factory=set)
    """Units whose outputs are among its arguments."""
    is_random: bool = False
    """Whether a state of a generator was another one afterwards."""


@dataclass(slots=True, kw_only=True)
class _Seen:
    storage: Any
    nbytes: int
    part: int
    maker: str | None
    is_output: bool = False
    is_held: bool = False
    readers: set[str] = field(default_factory=set)


class Probe:
    """Looks at arguments, outputs, saved tensors and generators while `active`.

    Args:
        chunks: the model, whose parameters and buffers are no activations.
        device: where it is.
    """

    def __init__(self, chunks: Iterable[nn.Module], device: torch.device) -> None:
        self.active = False
        self.part = BEFORE
        """The layer that runs; `BEFORE` and `BEHIND` outside of layers."""
        self.found: dict[int, dict[str, Found]] = {}
        """By layer and kind of unit."""
        self.storages: dict[int, tuple[StorageRow, ...]] = {}
        """By layer, `BEFORE` and `BEHIND`."""
        self._device = device
        modules = (module for chunk in chunks for module in chunk.modules())
        own = (tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values()))
        self._static = {_key(tensor) for tensor in own if tensor is not None}
        self._seen: dict[int, _Seen] = {}
        self._running: str | None = None

    @contextmanager
    def look(self) -> Iterator[None]:
        """One forward pass through one chunk."""
        self.active, self.part = True, BEFORE
        try:
            with saved_tensors_hooks(self._saved, lambda tensor: tensor):
                yield
        finally:
            self.active = False
            for part in {seen.part for seen in self._seen.values()}:
                self.storages[part] = _rows(seen for seen in self._seen.values() if seen.part == part)
            self._seen = {}

    def layer(self, layer: int | None) -> None:
        """A layer begins; None: it has ended."""
        self.part = BEHIND if layer is None else layer

    def call(
        self,
        unit: str,
        layer: int,
        function: Callable[..., Result],
        args: tuple[Any, ...],
        options: Mapping[str, Any],
    ) -> Result:
        """Call the unit and note what it took, what it gave, and whether it was random."""
        name = kind_of(unit)
        found = self.found.setdefault(layer, {}).setdefault(name, Found())
        for tensor in _tensors((args, dict(options))):
            seen = self._see(tensor)
            if seen is not None:
                seen.readers.add(name)
                if seen.maker not in (None, name):
                    found.reads.add(str(seen.maker))
        before, self._running = generator_states(self._device), name
        try:
            output = function(*args, **options)
        finally:
            self._running = None
        after = generator_states(self._device)
        found.is_random |= any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
        self._running = name
        for tensor in _tensors(output):
            seen = self._see(tensor)
            if seen is not None and seen.maker == name:
                seen.is_output = True
        self._running = None
        return output

    def _saved(self, tensor: Tensor) -> Tensor:
        seen = self._see(tensor)
        if seen is not None:
            seen.is_held = True
        return tensor

    def _see(self, tensor: Tensor) -> _Seen | None:
        key = _key(tensor)
        if key in self._static:
            return None
        seen = self._seen.get(key)
        if seen is None:
            storage = tensor.untyped_storage()
            seen = _Seen(storage=storage, nbytes=storage.nbytes(), part=self.part, maker=self._running)
            self._seen[key] = seen
        return seen


def generator_states(device: torch.device) -> list[Tensor]:
    """Of all generators that a unit may draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    tracked = get_cuda_rng_tracker().get_states()
    return states + [state.clone() for state in tracked.values() if isinstance(state, Tensor)]


def _rows(storages: Iterable[_Seen]) -> tuple[StorageRow, ...]:
    """One row for all storages with the same maker and the same readers, in the order of their makers."""
    sums: dict[tuple[str | None, bool, bool, tuple[str, ...]], int] = {}
    for seen in storages:
        if seen.is_held or seen.readers - {seen.maker}:
            readers = tuple(unit for unit in LAYER_UNITS if unit in seen.readers)
            key = (seen.maker, seen.is_output, seen.is_held, readers)
            sums[key] = sums.get(key, 0) + seen.nbytes
    return tuple(
        StorageRow(name=_name(maker, is_output), nbytes=nbytes, maker=maker, held=held, replay_readers=readers)
        for (maker, is_output, held, readers), nbytes in sums.items()
    )


def _name(maker: str | None, is_output: bool) -> str:
    if maker is None:
        return "of no unit"
    return f"output of {maker}" if is_output else f"inside {maker}"


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, tuple | list) else []
