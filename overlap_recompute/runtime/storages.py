"""Storages that are kept and storages that are dropped: who they are and how many bytes (docs/runtime.md, R3, R12)."""

import weakref
from collections.abc import Hashable

import torch
from torch import Tensor

from overlap_recompute.runtime.errors import InPlaceError
from overlap_recompute.runtime.ledger import Ledger


class Tally:
    """Bytes of one layer for one microbatch; what is released before the forward pass ends does not count."""

    __slots__ = ("microbatch", "layer", "kept_bytes", "dropped_bytes", "closed")

    def __init__(self, microbatch: Hashable, layer: int) -> None:
        """`layer`: -1 outside of every layer."""
        self.microbatch, self.layer = microbatch, layer
        self.kept_bytes = self.dropped_bytes = 0
        self.closed = False
        """Whether the forward pass has ended."""


KeptTable = dict[int, "weakref.ref[KeptStorage]"]
StaticTable = dict[int, "weakref.ref[torch.UntypedStorage]"]


NO_VERSION = -1
"""In place of the version of an inference tensor, which has none: nobody may modify it."""


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """The tensor's storage, or None for layouts that have none (sparse, some subclasses)."""
    try:
        return tensor.untyped_storage()
    except RuntimeError:  # NotImplementedError is one
        return None


class KeptStorage:
    """A storage that stays in memory; every `Kept` on it refers to this one object, whose death is its release."""

    __slots__ = ("ledger", "table", "key", "nbytes", "tally", "__weakref__")

    def __init__(self, ledger: Ledger, table: KeptTable, key: int, nbytes: int, tally: "Tally") -> None:
        self.ledger, self.table, self.key, self.nbytes, self.tally = ledger, table, key, nbytes, tally
        table[key] = weakref.ref(self)
        ledger.keep(nbytes)
        tally.kept_bytes += nbytes

    def __del__(self) -> None:
        self.ledger.kept_bytes -= self.nbytes
        if not self.tally.closed:
            self.tally.kept_bytes -= self.nbytes
        entry = self.table.get(self.key)
        # The address may already belong to a newer record.
        if entry is not None and (entry() is None or entry() is self):
            del self.table[self.key]


class Kept:
    """A saved tensor, or an argument of a unit, that stays in memory."""

    __slots__ = ("tensor", "version", "storage")

    def __init__(self, tensor: Tensor, version: int, storage: KeptStorage | None) -> None:
        """`storage` is None where bytes are not ours to count: parameters, buffers, layouts without a storage."""
        self.tensor, self.version, self.storage = tensor, version, storage

    def take(self) -> Tensor:
        """The tensor.

        Raises:
            InPlaceError: it was modified since it was kept (autograd cannot check this under hooks).
        """
        tensor = self.tensor
        if self.version != NO_VERSION and tensor._version != self.version:
            raise self._modified()
        return tensor

    def resolve(self, hidden: bool) -> Tensor:
        """As an argument of a replay: the same tensor, wherever the replay runs."""
        return self.take()

    def _modified(self) -> InPlaceError:
        shape, tally = tuple(self.tensor.shape), self.storage.tally if self.storage is not None else None
        where = f" of {_layer(tally.layer)}, microbatch {tally.microbatch}" if tally else ", a parameter or buffer"
        return InPlaceError(
            f"a tensor of shape {shape} kept for backward{where}, changed in place "
            f"(version {self.tensor._version}, kept at {self.version})",
            "a tensor that nobody modifies between the forward and the backward pass",
            "replace the in-place operation by one that makes a new tensor",
        )


def _layer(layer: int) -> str:
    return f"layer {layer}" if layer >= 0 else "no layer"
