"""Bytes of the storages that operations make, exactly and at any time: also of fake tensors, which take no memory."""

import weakref
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from overlap_recompute.runtime.storages import storage_of
from overlap_recompute.runtime.trees import tensors_in


class StorageRecord:
    """One storage, from the operation that made it, or from when it was first seen, to its death."""

    __slots__ = ("nbytes", "is_counted", "is_kept", "group", "ref")

    def __init__(self, nbytes: int, is_counted: bool) -> None:
        self.nbytes = nbytes
        self.is_counted = is_counted
        """Whether an operation under the mode made it."""
        self.is_kept = False
        """Whether it was declared kept for backward (`LiveBytes.keep`)."""
        self.group: Hashable = None
        """In which sum of kept bytes it is."""
        self.ref: weakref.ref[torch.UntypedStorage] | None = None


class LiveBytes(TorchDispatchMode):
    """Counts what operations make while it is active: a storage counts until nobody refers to it.

    Temporaries inside of one operation are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.kept_bytes = 0
        """The part of it that was declared kept."""
        self.kept_of: Counter[Hashable] = Counter()
        """The same by group."""
        self.on_growth: Callable[[], None] | None = None
        """Called whenever more lives than before."""
        self.peak_bytes = 0
        """Most that lived since `start_span`."""
        self.besides_peak_bytes = 0
        """Most that lived besides what is kept since `start_span`."""
        self._records: dict[int, StorageRecord] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result if isinstance(result, tuple | list) else (result,)):
            storage = storage_of(tensor)
            if storage is not None:
                self.record(storage, is_made=True)
        return result

    def record(self, storage: torch.UntypedStorage, *, is_made: bool = False) -> StorageRecord:
        """The record of a storage; `is_made`: count it from now on if it is new."""
        key: int = storage._cdata
        known = self._records.get(key)
        if known is not None and known.ref is not None and known.ref() is storage:
            return known
        record = StorageRecord(storage.nbytes(), is_made)
        record.ref = weakref.ref(storage, lambda _: self._forget(key, record))
        self._records[key] = record
        if is_made:
            self.live_bytes += record.nbytes
            self._note()
        return record

    def measure(self, record: StorageRecord) -> int:
        """Bytes of a storage now: some operations empty a storage that others still refer to."""
        storage = record.ref() if record.ref is not None else None
        if storage is not None and storage.nbytes() != record.nbytes:
            change = storage.nbytes() - record.nbytes
            record.nbytes += change
            self.live_bytes += change if record.is_counted else 0
            self._add_kept(record, change)
        return record.nbytes

    def keep(self, record: StorageRecord, group: Hashable = None) -> None:
        """Declare that a storage is kept for backward, as one of a group."""
        self.measure(record)
        if record.is_counted and not record.is_kept and record.ref is not None and record.ref() is not None:
            record.is_kept, record.group = True, group
            self._add_kept(record, record.nbytes)

    def start_span(self) -> None:
        """Let peaks begin at what lives now."""
        self.peak_bytes = self.live_bytes
        self.besides_peak_bytes = self.live_bytes - self.kept_bytes

    def _note(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.besides_peak_bytes = max(self.besides_peak_bytes, self.live_bytes - self.kept_bytes)
        if self.on_growth is not None:
            self.on_growth()

    def _add_kept(self, record: StorageRecord, nbytes: int) -> None:
        if record.is_kept:
            self.kept_bytes += nbytes
            self.kept_of[record.group] += nbytes

    def _forget(self, key: int, record: StorageRecord) -> None:
        if record.is_counted:
            self.live_bytes -= record.nbytes
        self._add_kept(record, -record.nbytes)
        if self._records.get(key) is record:
            del self._records[key]
