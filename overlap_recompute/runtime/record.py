"""The forward pass: what autograd holds in place of each saved tensor (docs/runtime.md, R1-R3, R8, R9)."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from overlap_recompute.runtime.ambient import Ambient
from overlap_recompute.runtime.calls import DROPPED, UnitCall
from overlap_recompute.runtime.errors import InPlaceError, Place, UnsafeUnitError
from overlap_recompute.runtime.handles import Entry, Handle, OutputRef, forget_output
from overlap_recompute.runtime.hot_paths import handle_of_output, remember_output
from overlap_recompute.runtime.journal import Kind
from overlap_recompute.runtime.rng import RngKeeper
from overlap_recompute.runtime.state import RuntimeState
from overlap_recompute.runtime.storages import NO_VERSION, Kept, KeptStorage, storage_of
from overlap_recompute.runtime.trees import CONTAINERS, replace, tensors_in
from overlap_recompute.runtime.units import Unit

Watched = list[tuple[Tensor, int]]
Known = dict[int, Kept | Handle]


class Recorder:
    """Packs saved tensors, and runs dropped units so that they can be run again."""

    __slots__ = ("state", "_rng", "_ambient", "_remember", "_handle_of")

    def __init__(self, state: RuntimeState, rng: RngKeeper, ambient: Ambient) -> None:
        self.state, self._rng, self._ambient = state, rng, ambient
        self._remember = remember_output(state, self._register)
        self._handle_of = handle_of_output(state)

    def pack(self, tensor: Tensor) -> Handle | Kept:
        """Pack hook of the forward pass: a handle where the tensor can be recomputed, the tensor where it is kept."""
        state = self.state
        call = state.running
        position = 0
        if call is not None:
            position = call.saved_count
            call.saved_count = position + 1
            if tensor is state.argument:
                # Most units save their argument: what the call keeps for its replay stands for it as well.
                return call.args[0]
        if type(tensor) is nn.Parameter:
            shared = state.parameters.get(id(tensor))
            if shared is not None and shared.version == tensor._version:
                return shared
            return self._keep_parameter(tensor)
        storage = storage_of(tensor)
        if storage is None:
            return Kept(tensor.detach(), tensor._version, None)
        key: int = storage._cdata
        output = state.outputs.get(key)
        if output is not None and output() is storage and (state.home is None or not state.home.is_left()):
            handle = self._handle_of(output, tensor, False)
            if handle is not None:
                return handle
        static = state.static.get(key)
        if static is not None and static() is storage:
            return Kept(_without_graph(tensor), tensor._version, None)
        kept = state.kept.get(key)
        if call is None or (kept is not None and kept() is not None):
            return Kept(_without_graph(tensor), tensor._version, state.keep(storage, key))
        seen = state.seen.get(key)
        if seen is not None and seen.storage() is storage and seen.sharers:
            entry = call.add_entry(Entry(position, seen.nbytes, tensor, seen))
        else:
            nbytes = storage.nbytes()
            entry = call.entries[position] = Entry(position, nbytes, tensor, None)
            state.ledger.dropped_bytes += nbytes
            call.tally.dropped_bytes += nbytes
            entry.storage = weakref.ref(storage)
            state.seen[key] = entry
        if state.verify:
            entry.reference = tensor.detach().clone()
        return Handle(call, entry, None, False)

    def _keep_parameter(self, tensor: nn.Parameter) -> Kept:
        """A parameter is a leaf, so that holding it as it is makes no cycle with its node."""
        kept, storage = Kept(tensor, tensor._version, None), storage_of(tensor)
        if storage is not None and self.state.is_static(storage, storage._cdata):
            self.state.parameters[id(tensor)] = kept
        return kept

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
        if not unit.dropped or torch.compiler.is_compiling() or state.is_elsewhere():
            if state.journal is not None:
                state.journal.add(Kind.FORWARD, Place(unit.name, unit.layer, microbatch.key, number))
            return self._run_kept(unit, forward, args, kwargs)
        call = UnitCall(state, unit, microbatch, number, forward)
        watched = self._store(call, args, kwargs)
        buffers = unit.buffer_marks() if unit.has_buffers else None
        call.ambient = unit.surroundings = self._ambient.capture(unit.modules, unit.parameters, unit.surroundings)
        before = self._rng.snapshot()
        outer, state.layer = state.layer, unit.layer
        state.running = call
        state.argument = args[0] if args and isinstance(args[0], Tensor) else None
        try:
            output = forward(*args, **kwargs)
            # At once: whoever called the unit may put the states back, which would look as if nothing had been drawn.
            call.rng = self._rng.changed(before, self._rng.snapshot())
            self._check(call, watched, buffers)
            self._remember(call, output)
        finally:
            state.running, state.argument, state.layer = None, None, outer
            state.seen.clear()
        call.phase = DROPPED
        microbatch.calls.append(weakref.ref(call))
        if state.journal is not None:
            state.journal.add(Kind.FORWARD, call.place)
            state.journal.add(Kind.DROP, call.place)
        return output

    def _run_kept(self, unit: Unit, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = self.state
        outer, state.layer = state.layer, unit.layer
        try:
            return forward(*args, **kwargs)
        finally:
            state.layer = outer

    def _store(self, call: UnitCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Watched:
        """Keep what a replay needs as arguments; returns the tensors with their versions."""
        watched: Watched = []
        if len(args) == 1 and not kwargs and type(args[0]) is Tensor:
            call.args = (self._store_tensor(args[0], watched),)
            return watched
        known: Known = {}
        call.args = tuple([self._store_value(call, value, watched, known) for value in args])
        if kwargs:
            call.kwargs = {name: self._store_value(call, value, watched, known) for name, value in kwargs.items()}
        return watched

    def _store_value(self, call: UnitCall, value: Any, watched: Watched, known: Known) -> Any:
        if isinstance(value, Tensor):
            argument = known.get(id(value))
            if argument is None:
                argument = known[id(value)] = self._store_tensor(value, watched)
            return argument
        if isinstance(value, CONTAINERS):
            if call.nested is None:
                call.nested = []
            return replace(value, _is_tensor, lambda tensor: self._store_nested(call, tensor, watched, known))
        return value

    def _store_nested(self, call: UnitCall, tensor: Tensor, watched: Watched, known: Known) -> Kept | Handle:
        argument: Kept | Handle = self._store_value(call, tensor, watched, known)
        if isinstance(argument, Handle) and call.nested is not None:
            call.nested.append(argument)
        return argument

    def _store_tensor(self, tensor: Tensor, watched: Watched) -> Kept | Handle:
        state = self.state
        record: KeptStorage | None = None
        storage: torch.UntypedStorage | None = None
        version = NO_VERSION
        try:
            version = tensor._version
            storage = tensor.untyped_storage()
        except RuntimeError:  # made in inference mode, or of a layout that has none
            storage = storage_of(tensor)
        watched.append((tensor, version))
        if storage is not None:
            key: int = storage._cdata
            output = state.outputs.get(key)
            if output is not None and output() is storage:
                handle = self._handle_of(output, tensor, tensor.requires_grad)
                if handle is not None:
                    return handle
            if type(tensor) is nn.Parameter:
                return Kept(tensor, version, None)
            if not state.is_static(storage, key):
                record = state.keep(storage, key)
        # A leaf, so that the replay saves the same tensors and its graph ends here.
        leaf = tensor.detach()
        if tensor.requires_grad:
            leaf.requires_grad_()
        return Kept(leaf, version, record)

    def _check(self, call: UnitCall, watched: Watched, buffers: tuple[tuple[int, int], ...] | None) -> None:
        unit = call.unit
        for tensor, version in watched:
            if version != NO_VERSION and tensor._version != version:
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
        if unit.inner_hooks and not self.state.replay_inner_hooks and unit.has_inner_hooks():
            raise UnsafeUnitError(
                "a module inside the unit has forward hooks",
                "hooks on the unit itself, which are not replayed, or none",
                "move the hooks, keep this unit (SAVE), or set replay_inner_hooks if they may run twice",
                call.place,
            )

    def _register(self, call: UnitCall, output: Any) -> None:
        """Let the outputs of a dropped call be recognized when somebody saves them."""
        state = self.state
        tensors = [output] if type(output) is Tensor else tensors_in(output)
        call.output_count = len(tensors)
        if state.verify:
            call.references = {i: t.detach().clone() for i, t in enumerate(tensors)}
        for index, tensor in enumerate(tensors):
            if type(tensor) is not Tensor:
                continue
            try:
                version, storage = tensor._version, tensor.untyped_storage()
            except RuntimeError:  # made in inference mode, or of a layout that has none
                continue
            key: int = storage._cdata
            known, kept, static = state.outputs.get(key), state.kept.get(key), state.static.get(key)
            if (
                (known is not None and known() is storage)
                or (kept is not None and kept() is not None)
                or (static is not None and static() is storage)
            ):
                continue
            ref = OutputRef(storage, forget_output)
            ref.key, ref.table, ref.call, ref.position = key, state.outputs, call, ~index
            ref.version, ref.nbytes, ref.dtype = version, storage.nbytes(), tensor.dtype
            ref.view = (tensor.size(), tensor.stride(), tensor.storage_offset())
            seen = state.seen.get(key)
            ref.account = seen if seen is not None and seen.storage() is storage else None
            state.outputs[key] = ref


def _without_graph(tensor: Tensor) -> Tensor:
    """The tensor, cut off from its node if it has one."""
    return tensor.detach() if tensor.requires_grad else tensor


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
