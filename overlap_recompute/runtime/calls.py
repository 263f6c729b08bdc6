"""Calls of units, and the handles that stand for what a dropped call computed (docs/runtime.md, R1-R5).

Who refers to whom (strongly, unless marked weak); there is no cycle, so reference counts end every life at once:

    autograd node -> Slot or OutputView -> Slot -> UnitCall -> arguments -> Slot of another call, or Kept
    storage of an output (weak) <- OutputRef -> UnitCall
    UnitCall -> Slot (weak)                        Microbatch -> UnitCall (weak)
"""

import enum
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from overlap_recompute.runtime.errors import InPlaceError, Place
from overlap_recompute.runtime.journal import Kind
from overlap_recompute.runtime.storages import DroppedStorage, Kept, Tally

if TYPE_CHECKING:
    from overlap_recompute.runtime.lanes import Fence
    from overlap_recompute.runtime.state import RuntimeState
    from overlap_recompute.runtime.units import Unit

Geometry = tuple[torch.Size, tuple[int, ...], int, torch.dtype]


class Phase(enum.Enum):
    """How far a call of a dropped unit has come."""

    FORWARD = enum.auto()
    DROPPED = enum.auto()
    REPLAYING = enum.auto()
    PRESENT = enum.auto()
    FAILED = enum.auto()


class Argument(Protocol):
    """A tensor argument of a dropped call, kept or recomputed."""

    def resolve(self, hidden: bool) -> Tensor:
        """The tensor to replay with."""
        ...


class Microbatch:
    """One forward pass: its calls in order, and its bytes by layer."""

    __slots__ = ("key", "calls", "counts", "cursor", "complete", "trains", "tallies", "__weakref__")

    def __init__(self, key: Hashable, trains: bool) -> None:
        self.key, self.trains = key, trains
        self.calls: list[weakref.ref[UnitCall]] = []
        self.counts: dict[Unit, int] = {}
        self.cursor = 0
        self.complete = False
        self.tallies: dict[int, Tally] = {}
        """Bytes by layer."""

    def tally(self, layer: int) -> Tally:
        """The bytes of one layer."""
        found = self.tallies.get(layer)
        if found is None:
            found = self.tallies[layer] = Tally(self.key, layer)
        return found

    def close(self) -> None:
        """The forward pass has ended."""
        self.complete, self.cursor = True, len(self.calls)
        for tally in self.tallies.values():
            tally.closed = True

    def living(self) -> Iterator["UnitCall"]:
        """The calls that somebody still refers to, in forward order."""
        return (call for ref in self.calls if (call := ref()) is not None)


class UnitCall:
    """One call of a dropped unit: what it takes to run it again, and who waits for the result."""

    __slots__ = (
        "state", "unit", "microbatch", "number", "forward", "args", "kwargs", "nested_sources", "saved_count", "refs",
        "output_count", "references", "phase", "hidden", "untouched", "ambient", "rng", "fence", "__weakref__",
    )  # fmt: skip

    def __init__(
        self, state: "RuntimeState", unit: "Unit", microbatch: Microbatch, number: int, forward: Callable[..., Any]
    ) -> None:
        self.state, self.unit, self.microbatch, self.number, self.forward = state, unit, microbatch, number, forward
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] | None = None
        self.nested_sources: list[HandleArgument] | None = None
        """Arguments inside of containers; None when no argument is a container."""
        self.saved_count = 0
        """Tensors that the forward pass saved inside the unit."""
        self.refs: dict[int, weakref.ref[Slot]] | None = None
        """Slots by position among the saved tensors; those of outputs by `~index`."""
        self.output_count = 0
        self.references: dict[int, Tensor] | None = None
        self.phase = Phase.FORWARD
        self.hidden = False
        self.untouched = True
        self.ambient: Any = None
        self.rng: Any = None
        self.fence: Fence | None = None

    @property
    def place(self) -> Place:
        """Unit, layer, microbatch and call, for messages and the journal."""
        return Place(self.unit.name, self.unit.layer, self.microbatch.key, self.number)

    def slots(self) -> "Iterator[Slot]":
        """The slots that a node of the autograd graph, or an argument of another call, still refers to."""
        if self.refs:
            for ref in self.refs.values():
                if (slot := ref()) is not None:
                    yield slot

    def add_slot(self, position: int, slot: "Slot") -> "weakref.ref[Slot]":
        """A new slot, at a position among the saved tensors or at `~index` of an output."""
        if self.refs is None:
            self.refs = {}
        ref = self.refs[position] = weakref.ref(slot)
        return ref

    def is_wanted(self) -> bool:
        """Whether a replay would bring back anything that somebody waits for."""
        return self.phase is Phase.DROPPED and next(self.slots(), None) is not None

    def replay_bytes(self) -> int:
        """What a replay would bring back now, each storage counted once."""
        return sum(group.nbytes for group in {slot.group for slot in self.slots()} if not group.present)

    def pending_source(self) -> "UnitCall | None":
        """A call that must be replayed before this one because this one needs its output."""
        arguments: Iterable[Any] = self.args
        if self.kwargs or self.nested_sources:
            arguments = (*self.args, *(self.kwargs or {}).values(), *(self.nested_sources or ()))
        for argument in arguments:
            if type(argument) is HandleArgument and argument.slot.tensor is None:
                return argument.slot.call
        return None

    def first_use(self) -> None:
        """Backward reads something of this call for the first time."""
        self.untouched = False
        self.state.in_backward = self.microbatch
        if self.hidden:
            for slot in self.slots():
                slot.group.use()
        if self.state.journal is not None:
            self.state.journal.add(Kind.USE, self.place, self.hidden)

    def forget_arguments(self) -> None:
        """Let go of what only a replay needs."""
        self.args, self.kwargs, self.nested_sources = (), None, None
        self.references = self.ambient = self.rng = None

    def __del__(self) -> None:
        if self.state.journal is not None and self.phase is not Phase.FORWARD:
            self.state.journal.add(Kind.RELEASE, self.place, self.hidden)


class Slot:
    """Stands for one tensor of a dropped call; autograd, or another call, holds it in place of the tensor."""

    __slots__ = ("call", "group", "geometry", "tensor", "version", "reference", "__weakref__")

    def __init__(self, call: UnitCall, group: DroppedStorage, geometry: tuple[Any, ...]) -> None:
        """`geometry` is what a replay must reproduce: shape and dtype, and for outputs stride and offset as well."""
        self.call, self.group, self.geometry = call, group, geometry
        self.tensor: Tensor | None = None
        self.version = 0
        self.reference: Tensor | None = None

    def fill(self, tensor: Tensor, hidden: bool) -> None:
        """A replay hands over the tensor."""
        self.version = tensor._version
        self.tensor = tensor.detach()
        self.group.bring_back(hidden)

    def take(self) -> Tensor:
        """The tensor for backward: replayed now unless that was done before.

        Raises:
            ReplayError: the replay failed.
            InPlaceError: somebody modified the recomputed tensor.
        """
        tensor, call = self.tensor, self.call
        if tensor is None:
            tensor = call.state.demand(self)
        if call.untouched:
            call.first_use()
        if call.fence is not None and call.fence.wait():
            call.fence = None
        if tensor._version != self.version:
            raise self._modified()
        return tensor

    def peek(self, hidden: bool) -> Tensor:
        """The tensor as an argument of a replay; a hidden replay runs on the lane that made it and waits for nobody."""
        if not hidden:
            return self.take()
        if self.tensor is None or self.tensor._version != self.version:
            raise self._modified()
        return self.tensor

    def _modified(self) -> InPlaceError:
        return InPlaceError(
            f"a tensor of shape {tuple(self.geometry[0])} that the unit saves and then changes in place",
            "a unit that changes a tensor only before it saves it for backward",
            "replace the in-place operation by one that makes a new tensor",
            self.call.place,
        )


class OutputView:
    """A view of a dropped output, rebuilt on the recomputed storage."""

    __slots__ = ("slot", "size", "stride", "offset")

    def __init__(self, slot: Slot, size: torch.Size, stride: tuple[int, ...], offset: int) -> None:
        self.slot, self.size, self.stride, self.offset = slot, size, stride, offset

    def take(self) -> Tensor:
        """The view for backward; see `Slot.take`."""
        return self.slot.take().as_strided(self.size, self.stride, self.offset)

    def peek(self, hidden: bool) -> Tensor:
        """The view as an argument of a replay; see `Slot.peek`."""
        return self.slot.peek(hidden).as_strided(self.size, self.stride, self.offset)


Handle = Kept | Slot | OutputView


class HandleArgument:
    """An argument of a dropped call that is itself dropped: replaying the one takes replaying the other first."""

    __slots__ = ("handle", "requires_grad", "resolved")

    def __init__(self, handle: Slot | OutputView, requires_grad: bool) -> None:
        self.handle, self.requires_grad = handle, requires_grad
        self.resolved: Tensor | None = None

    @property
    def slot(self) -> Slot:
        """The slot behind the handle."""
        return self.handle if isinstance(self.handle, Slot) else self.handle.slot

    def resolve(self, hidden: bool) -> Tensor:
        """The recomputed tensor as a leaf; the same object each time, since modules compare arguments by identity."""
        if self.resolved is None:
            self.resolved = self.handle.peek(hidden).detach()
            if self.requires_grad:
                self.resolved.requires_grad_()
        return self.resolved


class OutputRef(weakref.ref[torch.UntypedStorage]):
    """Says that a living storage is the output of a dropped call: weak reference and address together identify it."""

    __slots__ = ("key", "table", "call", "index", "version", "geometry", "nbytes", "group", "slot")

    key: int
    table: "dict[int, OutputRef]"
    call: UnitCall
    index: int
    version: int
    geometry: Geometry
    nbytes: int
    group: "weakref.ref[DroppedStorage] | None"
    slot: "weakref.ref[Slot] | None"

    def handle(self, tensor: Tensor) -> Slot | OutputView | None:
        """What stands for `tensor`, which lies on this storage; None when a replay would not reproduce it.

        That is so after an in-place operation, for another dtype, and when the call has been replayed already.
        """
        size, stride, offset, dtype = self.geometry
        call = self.call
        if tensor._version != self.version or call.phase is not Phase.DROPPED or tensor.dtype is not dtype:
            return None
        if dtype.is_complex and tensor.is_conj():
            return None
        slot = self.slot() if self.slot is not None else None
        if slot is None:
            slot = self._new_slot()
        own_size, own_stride, own_offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        if own_offset == offset and own_stride == stride and own_size == size:
            return slot
        return OutputView(slot, own_size, own_stride, own_offset)

    def _new_slot(self) -> Slot:
        call = self.call
        group = self.group() if self.group is not None else None
        if group is None:
            group = call.state.drop(self.nbytes, call)
        slot = Slot(call, group, self.geometry)
        self.slot = call.add_slot(~self.index, slot)
        return slot


def forget_output(ref: OutputRef) -> None:
    """The storage died: nobody can save it any more."""
    if ref.table.get(ref.key) is ref:
        del ref.table[ref.key]
