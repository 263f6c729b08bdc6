"""Running a dropped unit again: at any time, at most once, bit for bit (docs/runtime.md, R5-R8, R13, R14)."""

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from overlap_recompute.runtime.ambient import Ambient, are_at
from overlap_recompute.runtime.calls import DROPPED, Phase, UnitCall
from overlap_recompute.runtime.errors import InPlaceError, ReplayError, UnitError, UnsafeUnitError
from overlap_recompute.runtime.handles import Entry, Handle
from overlap_recompute.runtime.hot_paths import capture_hook, fill_output
from overlap_recompute.runtime.journal import Kind
from overlap_recompute.runtime.lanes import Lane
from overlap_recompute.runtime.marks import BEGIN, END, FAILED
from overlap_recompute.runtime.rng import RngKeeper
from overlap_recompute.runtime.state import RuntimeState
from overlap_recompute.runtime.storages import Kept
from overlap_recompute.runtime.trees import replace, tensors_in
from overlap_recompute.runtime.verify import check_replay

ARGUMENTS = (Kept, Handle)
# What `saved_tensors_hooks` and `enable_grad` call; as context managers they take as long as a small replay's kernel.
_push_hooks = torch._C._autograd._push_saved_tensors_default_hooks
_pop_hooks = torch._C._autograd._pop_saved_tensors_default_hooks
_set_grad = torch._C._set_grad_enabled
REPLAYING, PRESENT = Phase.REPLAYING, Phase.PRESENT


class Replayer:
    """Materializes calls, on demand or early."""

    __slots__ = ("lane", "_state", "_rng", "_ambient", "_lock", "_pack", "_unpack", "_fill_output")

    def __init__(self, state: RuntimeState, rng: RngKeeper, ambient: Ambient, lane: Lane) -> None:
        self.lane = lane
        self._state, self._rng, self._ambient = state, rng, ambient
        # Backward of CPU and of CUDA nodes runs on different threads; both may ask for the same call.
        self._lock = threading.RLock()
        self._pack, self._unpack = capture_hook(state, self._capture), self._refuse_backward
        self._fill_output = fill_output(state, _fill_output)

    def demand(self, call: UnitCall) -> None:
        """Backward waits for a call.

        Raises:
            ReplayError: the replay failed, now or earlier.
        """
        self.materialize(call, hidden=False)

    def materialize(self, call: UnitCall, hidden: bool) -> None:
        """Replay `call` after what it depends on; nothing happens if that was done before."""
        with self._lock:
            if call.pending_source() is None:
                self._run(call, hidden)
                return
            waiting = [call]
            while waiting:
                source = waiting[-1].pending_source()
                if source is not None and waiting[-1].phase is DROPPED:
                    waiting.append(source)
                else:
                    self._run(waiting.pop(), hidden)

    def open_lane(self) -> None:
        """Hidden replays follow."""
        home = self._state.home
        self.lane.open(None if home is None else home.stream)

    def run(self, call: UnitCall, hidden: bool) -> None:
        """Replay one call whose arguments are all there.

        Raises:
            ReplayError: the replay raised, or did something else than the forward pass.
        """
        with self._lock:
            self._run(call, hidden)

    def _run(self, call: UnitCall, hidden: bool) -> None:
        if call.phase is PRESENT:
            return
        if call.phase is not DROPPED:
            raise _not_replayable(call)
        if self._state.replaying is not None:
            raise _inside(self._state.replaying)
        begin_ns, journal, marks = time.perf_counter_ns(), self._state.journal, self._state.marks
        name = value = 0
        if marks is not None:
            name, value = marks.of(call, hidden)
            if hidden and self.lane.marks_itself:
                marks = None
            else:
                marks.mark(name, BEGIN, value)
        call.phase, call.hidden = REPLAYING, hidden
        if journal is not None:
            journal.add(Kind.REPLAY_BEGIN, call.place, hidden)
        try:
            if hidden:
                call.fence = self.lane.run(partial(self._replay, call, True), name, value)
            else:
                self._replay(call, False)
            call.phase = PRESENT
        except BaseException as error:
            self._fail(call, error)
        finally:
            call.forget_arguments()
        call.unit.replay_ns = time.perf_counter_ns() - begin_ns
        if call.postponed:
            call.unit.note_postponed(was_late=not hidden)
        self._state.replays.add(hidden, call.unit.replay_ns)
        if marks is not None:
            marks.mark(name, END, value)
        if journal is not None:
            journal.add(Kind.REPLAY_END, call.place, hidden)

    def _fail(self, call: UnitCall, error: BaseException) -> NoReturn:
        call.phase = Phase.FAILED
        call.take_away()
        marks = self._state.marks
        if marks is not None:
            name, value = marks.of(call, call.hidden)
            marks.mark(name, FAILED, value)
        if self._state.journal is not None:
            self._state.journal.add(Kind.REPLAY_FAILED, call.place, call.hidden)
        if isinstance(error, UnitError) or not isinstance(error, Exception):
            raise error
        raise ReplayError(
            f"its replay raised {type(error).__name__}: {error}",
            "a unit that can be run again with the arguments of its forward pass",
            "see the error above for its cause, or keep this unit (SAVE)",
            call.place,
        ) from error

    def _replay(self, call: UnitCall, hidden: bool) -> object:
        """Run the unit's forward under hooks that hand what it saves to the call's entries; returns what it read.

        With the function itself and with arguments that are no tensors: these may hold tensors, too.
        """
        state = self._state
        outside = state.microbatch, state.running, state.layer, state.replaying
        state.microbatch, state.running, state.replaying = None, None, call
        surroundings = rng = None
        try:
            args, kwargs = self._arguments(call, hidden)
            surroundings = self._ambient.enter(call.ambient, call.unit.modules)
            rng = self._rng.enter(call.rng) if call.rng is not None else None
            state.captured = 0
            grad = torch.is_grad_enabled()
            _push_hooks(self._pack, self._unpack)
            _set_grad(True)
            try:
                output = call.forward(*args, **kwargs)
            finally:
                _pop_hooks()
                _set_grad(grad)
            self._finish(call, output)
        finally:
            if rng is not None:
                self._rng.leave(rng)
            if surroundings is not None:
                surroundings.close()
            state.microbatch, state.running, state.layer, state.replaying = outside
        return (call.forward, args, kwargs) if hidden else None

    def _arguments(self, call: UnitCall, hidden: bool) -> tuple[Sequence[Any], dict[str, Any]]:
        if not are_at(call.unit.parameters, call.ambient.versions):
            raise _modified(call, "a parameter")
        known: dict[int, Tensor] = {}
        try:
            if call.nested is not None:
                return replace((call.args, call.kwargs or {}), _is_argument, partial(_resolve, hidden, known))
            if not call.kwargs:
                if len(call.args) == 1 and isinstance(call.args[0], ARGUMENTS):
                    return [call.args[0].resolve(hidden)], {}
                return [_resolve(hidden, known, a) if isinstance(a, ARGUMENTS) else a for a in call.args], {}
            args = [_resolve(hidden, known, a) if isinstance(a, ARGUMENTS) else a for a in call.args]
            items = call.kwargs.items()
            return args, {k: _resolve(hidden, known, a) if isinstance(a, ARGUMENTS) else a for k, a in items}
        except InPlaceError as error:
            if error.place is not None:
                raise
            raise _modified(call, "an argument") from None

    def _capture(self, tensor: Tensor) -> None:
        """Pack hook of replays: the n-th saved tensor belongs to the n-th one of the forward pass."""
        call, position = self._state.replaying, self._state.captured
        assert call is not None, "the hooks are in force only while a call is replayed"
        self._state.captured = position + 1
        entry = call.entries.get(position)
        if entry is None:
            return
        if tensor.dtype is not entry.dtype or tensor.numel() != entry.numel:
            forward, replay = f"{entry.numel} of {entry.dtype}", f"{tensor.numel()} of {tensor.dtype}"
            raise _differs(call, f"number of elements of saved tensor {position}", forward, replay)
        call.fill(entry, tensor, call.hidden)

    def _refuse_backward(self, packed: Any) -> Tensor:
        raise _inside(self._state.replaying)

    def _finish(self, call: UnitCall, output: Any) -> None:
        if self._state.captured != call.saved_count:
            raise _differs(call, "number of saved tensors", call.saved_count, self._state.captured)
        tensors = [output] if type(output) is Tensor else tensors_in(output)
        if len(tensors) != call.output_count:
            raise _differs(call, "number of outputs", call.output_count, len(tensors))
        for position, entry in call.entries.items():
            if position < 0:
                self._fill_output(call, entry, tensors[~position])
        if self._state.verify:
            check_replay(call, tensors)


def _fill_output(call: UnitCall, entry: Entry, tensor: Tensor) -> None:
    view = (tensor.size(), tensor.stride(), tensor.storage_offset())
    nbytes = tensor.untyped_storage().nbytes()
    if view != entry.view or nbytes != entry.nbytes or tensor.dtype is not entry.dtype:
        forward, replay = (entry.view, entry.dtype, entry.nbytes), (view, tensor.dtype, nbytes)
        raise _differs(call, f"geometry of output {~entry.position}", forward, replay)
    call.fill(entry, tensor, call.hidden)


def _is_argument(value: Any) -> bool:
    return isinstance(value, ARGUMENTS)


def _resolve(hidden: bool, known: dict[int, Tensor], value: Kept | Handle) -> Tensor:
    """The same tensor object for the same argument, since modules compare arguments by identity."""
    tensor = known.get(id(value))
    if tensor is None:
        tensor = known[id(value)] = value.resolve(hidden)
    return tensor


def _modified(call: UnitCall, what: str) -> InPlaceError:
    return InPlaceError(
        f"{what} changed in place after the unit ran",
        "arguments and parameters that stay as they are until backward",
        "replace the in-place operation by one that makes a new tensor, or keep this unit (SAVE)",
        call.place,
    )


def _differs(call: UnitCall, what: str, forward: object, replay: object) -> ReplayError:
    return ReplayError(
        f"{what} of the replay is {replay}, in the forward pass it was {forward}",
        "a unit that does the same thing when it is run again",
        "remove what depends on anything but its arguments, or keep this unit (SAVE)",
        call.place,
    )


_REFUSALS: dict[Phase, tuple[str, str]] = {
    Phase.FORWARD: ("backward runs through the unit inside its own forward pass", "keep this unit (SAVE)"),
    Phase.REPLAYING: ("the unit is needed by its own replay", "keep this unit (SAVE)"),
    Phase.FAILED: ("its replay has failed before", "see the first error for its cause"),
}


def _inside(call: UnitCall | None) -> UnsafeUnitError:
    return UnsafeUnitError(
        "backward runs inside the unit",
        "a unit that only computes forward",
        "keep this unit (SAVE)",
        call.place if call is not None else None,
    )


def _not_replayable(call: UnitCall) -> ReplayError:
    found, next_step = _REFUSALS[call.phase]
    return ReplayError(found, "a unit that can be replayed", next_step, call.place)
