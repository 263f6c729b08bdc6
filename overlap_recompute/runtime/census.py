"""Who makes, saves and reads the storages of a forward pass, seen once: the rows that say what any policy keeps.

NOTE [ rows ]
1. A storage is made by the unit during whose call it is first seen, as an output or as something saved; else by none.
2. It is held if autograd still holds it when the forward pass is over; the units that take it as an argument read it.
3. It belongs to the part (layer) that sees it first: a layer's input to the layer, its output to the next one.
4. Parameters and buffers are left out.
5. Backward shows in which order it reads what units made, and what lives besides at each step (`backward_steps`).

Works on real tensors and on fake ones (`torch._subclasses.FakeTensorMode`), on which it takes no memory and no time.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from overlap_recompute.plan.storages import BackwardMemory, ReplayRoom, StorageRow
from overlap_recompute.runtime.backward_steps import BackwardSteps
from overlap_recompute.runtime.live_bytes import LiveBytes, StorageRecord
from overlap_recompute.runtime.storages import storage_of
from overlap_recompute.runtime.trees import tensors_in

Result = TypeVar("Result")
OUTSIDE = -1
"""The part of what no layer sees first."""


class _Saved:
    """Stands for a tensor that autograd saved; dies with the node."""

    __slots__ = ("tensor", "seen", "__weakref__")

    def __init__(self, tensor: Tensor, seen: "_Seen | None") -> None:
        self.tensor, self.seen = tensor, seen


@dataclass(slots=True, kw_only=True)
class _Seen:
    record: StorageRecord
    part: int
    maker: str | None
    is_output: bool = False
    readers: set[str] = field(default_factory=set)
    saved: list["weakref.ref[_Saved]"] = field(default_factory=list)

    def is_held(self) -> bool:
        return any(ref() is not None for ref in self.saved)


@dataclass(slots=True, kw_only=True)
class _Call:
    """A call of a unit in the forward pass."""

    part: int
    unit: str
    before_bytes: int
    peak_bytes: int
    made: list[_Seen] = field(default_factory=list)

    def room_bytes(self) -> int:
        """Most that it held besides its arguments and what autograd still holds of what it made."""
        held_bytes = sum(seen.record.nbytes for seen in self.made if seen.is_held())
        return max(0, self.peak_bytes - self.before_bytes - held_bytes)


class Census:
    """Looks at one forward and backward pass of a model.

    Args:
        static: parameters and buffers, which are no activations.
        live: counts what operations make; active during both passes.
    """

    def __init__(self, static: Iterable[Tensor], live: LiveBytes) -> None:
        self.part = OUTSIDE
        """The layer that runs."""
        self.reads: dict[int, dict[str, set[str]]] = {}
        """By part: units in the order of their first calls, and the units whose outputs they take."""
        self.needs: dict[int, list[str]] = {}
        """By part: makers of what backward read, in its order, without repetitions one after the other."""
        self._live = live
        self._static = {id(self._record(tensor)) for tensor in static if self._record(tensor) is not None}
        self._seen: dict[int, _Seen] = {}
        self.steps = BackwardSteps(live)
        """Told by whoever knows which part's backward pass begins."""
        self._room: dict[int, dict[str, int]] = {}
        self._calls: list[_Call] = []
        self._running: list[_Call] = []
        live.on_growth = self._grow

    @contextmanager
    def forward(self) -> Iterator[None]:
        """The forward pass; when it is over, what autograd holds is known."""
        with saved_tensors_hooks(self._pack, self._unpack):
            yield
        for seen in self._seen.values():
            if seen.is_held():
                self._live.keep(seen.record, (seen.part, seen.maker))
        for call in self._calls:
            room = self._room.setdefault(call.part, {})
            room[call.unit] = max(room.get(call.unit, 0), call.room_bytes())
        self._calls.clear()

    def call(self, unit: str, function: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Call a unit of the part that runs, and note what it takes and gives."""
        reads = self.reads.setdefault(self.part, {}).setdefault(unit, set())
        for tensor in tensors_in((args, options)):
            seen = self._see(tensor)
            if seen is not None:
                seen.readers.add(unit)
                if seen.maker not in (None, unit):
                    reads.add(str(seen.maker))
        live_bytes = self._live.live_bytes
        call = _Call(part=self.part, unit=unit, before_bytes=live_bytes, peak_bytes=live_bytes)
        self._running.append(call)
        try:
            output = function(*args, **options)
            for tensor in tensors_in((output,)):
                seen = self._see(tensor)
                if seen is not None and seen.maker == unit:
                    seen.is_output = True
        finally:
            self._running.pop()
        self._calls.append(call)
        return output

    def rows(self, part: int) -> tuple[StorageRow, ...]:
        """The rows of a part; ask after the forward pass and before backward."""
        order = tuple(self.reads.get(part, ()))
        sums: dict[tuple[str | None, bool, bool, tuple[str, ...]], int] = {}
        for seen in self._seen.values():
            is_held = seen.is_held()
            if seen.part == part and (is_held or seen.readers - {str(seen.maker)}):
                readers = tuple(unit for unit in order if unit in seen.readers)
                key = (seen.maker, seen.is_output, is_held, readers)
                sums[key] = sums.get(key, 0) + self._live.measure(seen.record)
        return tuple(
            StorageRow(name=_name(maker, is_output), nbytes=nbytes, maker=maker, held=held, replay_readers=readers)
            for (maker, is_output, held, readers), nbytes in sums.items()
        )

    def backward_memory(self, part: int, rows: Sequence[StorageRow]) -> BackwardMemory | None:
        """What the backward pass of a part took, when it is over; None if nobody followed it. `rows` are the part's."""
        steps, room = self.steps.of(part, rows), self._room.get(part, {})
        if not steps:
            return None
        return BackwardMemory(
            steps=steps,
            replays=tuple(ReplayRoom(unit=unit, nbytes=nbytes) for unit, nbytes in room.items() if nbytes),
        )

    def _grow(self) -> None:
        for call in self._running:
            call.peak_bytes = max(call.peak_bytes, self._live.live_bytes)
        self.steps.sample()

    def _pack(self, tensor: Tensor) -> _Saved:
        seen = self._see(tensor)
        # Detached as the runtime's: an output of its own node would keep the node, and itself, alive.
        saved = _Saved(tensor if isinstance(tensor, nn.Parameter) else tensor.detach(), seen)
        if seen is not None:
            seen.saved.append(weakref.ref(saved))
        return saved

    def _unpack(self, saved: _Saved) -> Tensor:
        seen = saved.seen
        if seen is not None and seen.maker is not None:
            order = self.needs.setdefault(seen.part, [])
            if not order or order[-1] != seen.maker:
                order.append(seen.maker)
            self.steps.read(seen.part, seen.maker)
        return saved.tensor

    def _see(self, tensor: Tensor) -> _Seen | None:
        record = self._record(tensor)
        if record is None or id(record) in self._static:
            return None
        seen = self._seen.get(id(record))
        if seen is None:
            running = self._running[-1] if self._running else None
            seen = _Seen(record=record, part=self.part, maker=None if running is None else running.unit)
            self._seen[id(record)] = seen
            for call in self._running:
                call.made.append(seen)
        return seen

    def _record(self, tensor: Tensor) -> StorageRecord | None:
        storage = storage_of(tensor)
        return None if storage is None else self._live.record(storage)


def _name(maker: str | None, is_output: bool) -> str:
    if maker is None:
        return "of no unit"
    return f"output of {maker}" if is_output else f"inside {maker}"


def count_module(
    module: nn.Module, units: Mapping[str, nn.Module], run: Callable[[], Tensor]
) -> tuple[StorageRow, ...]:
    """The rows of any module for one call.

    Args:
        module: whose parameters and buffers do not count.
        units: submodules whose outputs can be dropped, by name.
        run: calls the module once, in training mode; returns what backward would start from.
    """
    with LiveBytes() as live, _as_units(census := Census(own_tensors([module]), live), units):
        with census.forward():
            output = run()
        rows = census.rows(OUTSIDE)
        del output
    return rows


@contextmanager
def _as_units(census: Census, units: Mapping[str, nn.Module]) -> Iterator[None]:
    before: Sequence[tuple[nn.Module, Any]] = [(unit, unit.__dict__.get("forward")) for unit in units.values()]
    for name, unit in units.items():
        unit.__dict__["forward"] = partial(census.call, name, unit.forward)
    try:
        yield
    finally:
        for unit, forward in before:
            if forward is None:
                del unit.__dict__["forward"]
            else:
                unit.__dict__["forward"] = forward


def own_tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Parameters and buffers of modules, also of those that `state_dict` leaves out."""
    every = (part for module in modules for part in module.modules())
    tensors = (tensor for part in every for tensor in (*part._parameters.values(), *part._buffers.values()))
    return [tensor for tensor in tensors if tensor is not None]
