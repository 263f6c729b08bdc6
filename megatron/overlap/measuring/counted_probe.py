"""What the probe would see, taken from a model that was counted: no forward pass has to be held in memory for it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from megatron.overlap.measuring.passes import BEFORE, BEHIND
from megatron.overlap.measuring.probe import Found, generator_states
from megatron.overlap.measuring.structure import fingerprint_of
from overlap_recompute.plan.counted import CountedEnd, CountedModel
from overlap_recompute.plan.layer_units import kind_of
from overlap_recompute.plan.storages import StorageRow

Result = TypeVar("Result")


class CountedProbe:
    """Stands where `Probe` stands; looks at generators alone.

    Args:
        counted: the model, counted without running it.
        device: where the model lives.
    """

    def __init__(self, counted: CountedModel, device: torch.device) -> None:
        self.active = False
        self.found: dict[int, dict[str, Found]] = {}
        """By layer and kind of unit."""
        self.storages: dict[int, tuple[StorageRow, ...]] = {
            BEFORE: _rows_of(counted.embedding),
            BEHIND: _rows_of(counted.head),
        }
        """By layer, `BEFORE` and `BEHIND`."""
        self._counted, self._device = counted, device

    def know(self, layers: Mapping[int, nn.Module]) -> bool:
        """Look these layers up, by index in the model; whether they are those that were counted."""
        for index, module in layers.items():
            kind = self._counted.kind_of(index)
            if kind.fingerprint != fingerprint_of(module):
                return False
            self.storages[index] = kind.storages
            self.found[index] = {unit.name: Found(reads=set(unit.reads)) for unit in kind.units if unit.refusal is None}
        return True

    @contextmanager
    def look(self) -> Iterator[None]:
        """One forward pass through one chunk."""
        self.active = True
        try:
            yield
        finally:
            self.active = False

    def layer(self, layer: int | None) -> None:
        """Nothing to note."""

    def call(
        self,
        unit: str,
        layer: int,
        function: Callable[..., Result],
        args: tuple[Any, ...],
        options: Mapping[str, Any],
    ) -> Result:
        """Call the unit and note whether it was random."""
        before = generator_states(self._device)
        output = function(*args, **options)
        found = self.found.setdefault(layer, {}).setdefault(kind_of(unit), Found())
        after = generator_states(self._device)
        found.is_random |= any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
        return output


def _rows_of(end: CountedEnd) -> tuple[StorageRow, ...]:
    return (StorageRow(name="of no unit", nbytes=end.kept_bytes, maker=None, held=True),)
