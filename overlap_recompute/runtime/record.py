"""The forward pass: what autograd holds in place of each saved tensor (docs/runtime.md, R1-R3, R8, R9)."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from overlap_recompute.runtime.ambient import Ambient
from overlap_recompute.runtime.calls import Handle, HandleArgument, OutputRef, Phase, Slot, UnitCall, forget_output
from overlap_recompute.runtime.errors import InPlaceError, Place, UnsafeUnitError
from overlap_recompute.runtime.journal import Kind
from overlap_recompute.runtime.rng import RngKeeper
from overlap_recompute.runtime.state import RuntimeState
from overlap_recompute.runtime.storages import DroppedStorage, Kept, KeptStorage, storage_of, version_of
from overlap_recompute.runtime.trees import CONTAINERS, replace, tensors_in
from overlap_recompute.runtime.units import Unit

Watched = list[tuple[Tensor, int]]
Known = dict[int, Kept | HandleArgument]


class Recorder:
    """Packs saved tensors, and runs dropped units so that they can be run again."""

    __slots__ = ("state", "_rng", "_ambient")

    def __init__(self, state: RuntimeState, rng: RngKeeper, ambient: Ambient) -> None:
        self.state, self._rng, self._ambient = state, rng, ambient

    def pack(self, tensor: Tensor) -> Handle:
        """Pack hook of the forward pass: a handle where the tensor can be recomputed, the tensor where it is kept."""
        state = self.state
        call = state.running
        storage = storage_of(tensor)
        if storage is None:
            if call is not None:
                call.saved_count += 1
            return Kept(tensor.detach(), tensor._version, None)
        key: int = storage._cdata
        output = state.outputs.get(key)
        if output is not None and output() is storage:
            handle = output.handle(tensor)
            if handle is not None:
                if call is not None:
                    call.saved_count += 1
                return handle
        if call is None:
            return self._keep(tensor, storage, key)
        position = call.saved_count
        call.saved_count = position + 1
        if state.is_kept(key) or self._is_static(tensor, storage, key):
            return self._keep(tensor, storage, key)
        slot = Slot(call, self._inner_storage(call, storage, key), (tensor.shape, tensor.dtype))
        if state.verify:
            slot.reference = tensor.detach().clone()
        call.add_slot(position, slot)
        return slot

    def run_unit(self, unit: Unit, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call of a unit in the forward pass of a microbatch.

        Raises:
            UnsafeUnitError: the unit is dropped but cannot be replayed.
        """
        state = self.state
        microbatch = state.microbatch
        assert microbatch is not None, "units outside of a microbatch are not recorded"
        number = microbatch.counts.get(unit, 0)
        microbatch.counts[unit] = number + 1
        if not unit.dropped or torch.compiler.is_compiling():
            if state.journal is not None:
                state.journal.add(Kind.FORWARD, Place(unit.name, unit.layer, microbatch.key, number))
            return forward(*args, **kwargs)
        call = UnitCall(state, unit, microbatch, number, forward)
        watched = self._store(call, args, kwargs)
        buffers = unit.buffer_marks() if unit.has_buffers() else None
        call.ambient = unit.surroundings = self._ambient.capture(unit.modules, unit.parameters, unit.surroundings)
        before = self._rng.before()
        outer, state.layer = state.layer, unit.layer
        state.running, state.seen = call, {}
        try:
            output = forward(*args, **kwargs)
            call.rng = self._rng.drawn(before)
            self._check(call, watched, buffers)
            self._register(call, output)
        finally:
            state.running, state.layer, state.seen = None, outer, {}
        call.phase = Phase.DROPPED
        microbatch.calls.append(weakref.ref(call))
        if state.journal is not None:
            state.journal.add(Kind.FORWARD, call.place)
            state.journal.add(Kind.DROP, call.place)
        return output

    def _is_static(self, tensor: Tensor, storage: torch.UntypedStorage, key: int) -> bool:
        # Types are compared because `isinstance(x, nn.Parameter)` runs Python code.
        return (
            self.state.is_static(storage, key) or type(tensor) is nn.Parameter or type(tensor._base) is nn.Parameter
        )

    def _keep(self, tensor: Tensor, storage: torch.UntypedStorage, key: int) -> Kept:
        record = None if self._is_static(tensor, storage, key) else self.state.keep(storage, key)
        # A saved output that referred to its own node would keep the graph alive for ever.
        kept = tensor if type(tensor) is nn.Parameter else tensor.detach()
        return Kept(kept, tensor._version, record)

    def _inner_storage(self, call: UnitCall, storage: torch.UntypedStorage, key: int) -> DroppedStorage:
        seen = self.state.seen.get(key)
        if seen is not None and seen[0]() is storage:
            return seen[1]
        group = self.state.drop(storage.nbytes(), call)
        self.state.seen[key] = (weakref.ref(storage), group)
        return group

    def _store(self, call: UnitCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Watched:
        """Keep what a replay needs as arguments; returns the tensors with their versions."""
        watched: Watched = []
        known: Known = {}
        call.args = tuple([self._store_value(call, value, watched, known) for value in args])
        if kwargs:
            call.kwargs = {name: self._store_value(call, value, watched, known) for name, value in kwargs.items()}
        return watched

    def _store_value(self, call: UnitCall, value: Any, watched: Watched, known: Known) -> Any:
        if isinstance(value, Tensor):
            argument = known.get(id(value))
            if argument is None:
                argument = known[id(value)] = self._store_tensor(call, value, watched)
            return argument
        if isinstance(value, CONTAINERS):
            if call.nested_sources is None:
                call.nested_sources = []
            return replace(value, _is_tensor, lambda tensor: self._store_value(call, tensor, watched, known))
        return value

    def _store_tensor(self, call: UnitCall, tensor: Tensor, watched: Watched) -> Kept | HandleArgument:
        state = self.state
        version = version_of(tensor)
        watched.append((tensor, version))
        record: KeptStorage | None = None
        storage = storage_of(tensor)
        if storage is not None:
            key: int = storage._cdata
            output = state.outputs.get(key)
            handle = output.handle(tensor) if output is not None and output() is storage else None
            if handle is not None:
                argument = HandleArgument(handle, tensor.requires_grad)
                if call.nested_sources is not None:
                    call.nested_sources.append(argument)
                return argument
            if type(tensor) is nn.Parameter:
                return Kept(tensor, version, None)
            if not self._is_static(tensor, storage, key):
                record = state.keep(storage, key)
        # A leaf, so that the replay saves the same tensors and its graph ends here.
        return Kept(tensor.detach().requires_grad_(tensor.requires_grad), version, record)

    def _check(self, call: UnitCall, watched: Watched, buffers: tuple[tuple[int, int], ...] | None) -> None:
        unit = call.unit
        for tensor, version in watched:
            if version_of(tensor) != version:
                raise InPlaceError(
                    f"the unit changes its argument of shape {tuple(tensor.shape)} in place",
                    "a dropped unit that leaves its arguments as they are",
                    "turn the in-place operation off (inplace=False), or keep this unit (SAVE)",
                    call.place,
                )
        if buffers is not None and (buffers != unit.buffer_marks() or unit.updates_statistics()):
            raise UnsafeUnitError(
                "the unit updates a buffer in its forward pass, such as running statistics",
                "a dropped unit without side effects: a replay would update the buffer a second time",
                "keep this unit (SAVE), or freeze its statistics",
                call.place,
            )
        if unit.inner_hooks and unit.has_inner_hooks():
            raise UnsafeUnitError(
                "a module inside the unit has forward hooks",
                "hooks on the unit itself, which are not replayed, or none",
                "move the hooks, attach the inner module as the unit, or keep this unit (SAVE)",
                call.place,
            )

    def _register(self, call: UnitCall, output: Any) -> None:
        """Let the outputs of a dropped call be recognized when somebody saves them."""
        state = self.state
        tensors = tensors_in(output)
        call.output_count = len(tensors)
        if state.verify:
            call.references = {i: t.detach().clone() for i, t in enumerate(tensors)}
        for index, tensor in enumerate(tensors):
            storage = storage_of(tensor)
            if storage is None or tensor.is_inference() or type(tensor) is not Tensor:
                continue
            key: int = storage._cdata
            known = state.outputs.get(key)
            if (known is not None and known() is storage) or state.is_kept(key) or state.is_static(storage, key):
                continue
            ref = OutputRef(storage, forget_output)
            ref.key, ref.table, ref.call, ref.index = key, state.outputs, call, index
            ref.version, ref.nbytes, ref.slot = tensor._version, storage.nbytes(), None
            ref.geometry = tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.dtype
            seen = state.seen.get(key)
            ref.group = weakref.ref(seen[1]) if seen is not None and seen[0]() is storage else None
            state.outputs[key] = ref


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
