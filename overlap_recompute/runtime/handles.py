"""Handles: what autograd, or another unit's call, holds in place of a dropped tensor (docs/runtime.md, R2-R4).

Who refers to whom (strongly, unless marked weak); there is no cycle, so reference counts end every life at once:

    autograd node -> Handle -> UnitCall -> Entry -> recomputed tensor
                               UnitCall -> arguments -> Handle of another call, or Kept
    storage of an output (weak) <- OutputRef -> UnitCall          Microbatch -> UnitCall (weak)

Objects are few because there are many: one `Entry` for each dropped tensor and one `Handle` for each reader.
"""

import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from overlap_recompute.runtime.errors import InPlaceError

if TYPE_CHECKING:
    from overlap_recompute.runtime.calls import UnitCall

View = tuple[torch.Size, tuple[int, ...], int | torch.SymInt]
"""Size, stride and offset on the storage."""


class Entry:
    """One dropped tensor of a call, and its result once it is recomputed; lives as long as a handle to it.

    Bytes are counted once per storage: further entries on one storage name the first of them as `account`.
    """

    __slots__ = (
        "position", "nbytes", "numel", "dtype", "account", "readers", "sharers", "tensor", "version",
        "present", "prefetched", "view", "storage", "reference",
    )  # fmt: skip

    view: View
    """Set for outputs: the geometry that a replay must reproduce, because views are rebuilt on it."""
    storage: "weakref.ref[torch.UntypedStorage]"
    """Set for what a unit saves inside itself: the storage that is dropped."""
    reference: Tensor
    """Set to verify the replay: a copy of the dropped tensor."""
    version: int
    """Set with `tensor`: its in-place version."""

    def __init__(self, position: int, nbytes: int, tensor: Tensor, account: "Entry | None") -> None:
        """`position`: among the tensors that the call saved, `~index` for an output; `nbytes`: of the whole storage."""
        self.position, self.nbytes, self.account = position, nbytes, account
        self.numel, self.dtype = tensor.numel(), tensor.dtype
        # `account` is None where it is this entry: an object that names itself would never die.
        self.readers = 0
        self.sharers = 1
        self.tensor: Tensor | None = None
        self.present = self.prefetched = False


class Handle:
    """Stands for one dropped tensor, or a view of it."""

    __slots__ = ("call", "entry", "view", "requires_grad")

    def __init__(self, call: "UnitCall", entry: Entry, view: View | None, requires_grad: bool) -> None:
        """`view`: None for the tensor itself; `requires_grad`: of the leaf that an argument becomes in a replay."""
        self.call, self.entry, self.view, self.requires_grad = call, entry, view, requires_grad
        entry.readers += 1

    def __del__(self) -> None:
        entry = self.entry
        entry.readers = readers = entry.readers - 1
        if not readers:
            self.call.release(entry)

    def is_pending(self) -> bool:
        """Whether the tensor must be recomputed first."""
        return self.entry.tensor is None

    def take(self) -> Tensor:
        """The tensor for backward: replayed now unless that was done before.

        Raises:
            ReplayError: the replay failed.
            InPlaceError: somebody modified the recomputed tensor.
        """
        call = self.call
        if self.entry.tensor is None:
            call.state.demand(call)
        if call.untouched:
            call.first_use()
        call.state.last_read = call.unit, call.number, call.microbatch
        fence = call.fence
        # Another backward thread may wait for it, and take it away, at the same time.
        if fence is not None and fence.wait():
            call.fence = None
        return self._read()

    def resolve(self, hidden: bool) -> Tensor:
        """The tensor as an argument of a replay: a leaf, so that the replay's graph ends there.

        A hidden replay runs on the lane that made the tensor, and waits for nobody.
        """
        tensor = self._read() if hidden else self.take()
        leaf = tensor.detach()
        if self.requires_grad:
            leaf.requires_grad_()
        return leaf

    def _read(self) -> Tensor:
        entry = self.entry
        tensor = entry.tensor
        assert tensor is not None, "a replay fills every entry"
        if tensor._version != entry.version:
            raise InPlaceError(
                f"a tensor of shape {tuple(tensor.shape)} that the unit saves and then changes in place",
                "a unit that changes a tensor only before it saves it for backward",
                "replace the in-place operation by one that makes a new tensor",
                self.call.place,
            )
        return tensor if self.view is None else tensor.as_strided(*self.view)


class OutputRef(weakref.ref[torch.UntypedStorage]):
    """Says that a living storage is the output of a dropped call: weak reference and address together identify it."""

    __slots__ = ("key", "table", "call", "position", "version", "view", "dtype", "nbytes", "account")

    key: int
    table: "dict[int, OutputRef]"
    call: "UnitCall"
    position: int
    """Of its entry: `~index`."""
    version: int
    view: View
    dtype: torch.dtype
    nbytes: int
    account: Entry | None
    """An entry on the same storage, of what the unit saved inside itself."""

    def handle(self, tensor: Tensor, requires_grad: bool) -> Handle | None:
        """What stands for `tensor`, which lies on this storage; None when a replay would not reproduce it.

        That is so after an in-place operation, for another dtype, and when the call has been replayed already.
        """
        call, position, dtype = self.call, self.position, self.dtype
        if tensor._version != self.version or not call.is_dropped() or tensor.dtype is not dtype:
            return None
        if dtype.is_complex and tensor.is_conj():
            return None
        entry = call.entries.get(position)
        if entry is None:
            account = self.account
            if account is not None and not account.sharers:
                account = None
            entry = call.add_entry(Entry(position, self.nbytes, tensor, account))
            entry.view = self.view
        view = (tensor.size(), tensor.stride(), tensor.storage_offset())
        return Handle(call, entry, None if view == self.view else view, requires_grad)


def forget_output(ref: OutputRef) -> None:
    """The storage died: nobody can save it any more."""
    if ref.table.get(ref.key) is ref:
        del ref.table[ref.key]
