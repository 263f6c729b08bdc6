"""Overlapped activation recomputation for any `nn.Module` (docs/runtime.md)."""

import operator
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from overlap_recompute.plan.decisions import Decision, Policy
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.runtime.ambient import Ambient, ContextProvider
from overlap_recompute.runtime.attachment import Attachments, find_units
from overlap_recompute.runtime.calls import UnitCall
from overlap_recompute.runtime.errors import Place, UnfinishedError
from overlap_recompute.runtime.hot_paths import pack_hook, take_hook
from overlap_recompute.runtime.journal import Journal
from overlap_recompute.runtime.lanes import InlineLane, Lane
from overlap_recompute.runtime.ledger import Ledger
from overlap_recompute.runtime.marks import ReplayMarks
from overlap_recompute.runtime.recompute_queue import RecomputeQueue
from overlap_recompute.runtime.record import Recorder
from overlap_recompute.runtime.replay import Replayer
from overlap_recompute.runtime.report import StepReport, report_step
from overlap_recompute.runtime.rng import RngKeeper, RngProvider
from overlap_recompute.runtime.scope import MicrobatchScope
from overlap_recompute.runtime.state import NO_LAYER, ReplayCounts, RuntimeState
from overlap_recompute.runtime.storages import storage_of
from overlap_recompute.runtime.units import LayerForward, Unit, UnitForward

Result = TypeVar("Result")


class Runtime:
    """Drops what the policy says in the forward pass and brings it back before backward needs it.

    Example:
        runtime = Runtime(Policy.recompute("norm", "act"))
        runtime.attach(model, units=["blocks.*.norm", "blocks.*.act"])
        with runtime.microbatch(0):
            loss = model(x).sum()
        loss.backward()
        runtime.step_end()

    Whatever runs outside of `microbatch`, or without gradients, is not touched. `queue.fill` brings units back early;
    without it every unit is recomputed on demand.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        lane: Lane | None = None,
        prefetch_cap_bytes: int | None = None,
        backward_order: Literal["fifo", "lifo"] = "fifo",
        rng_providers: Iterable[RngProvider] = (),
        context_providers: Sequence[ContextProvider] = (),
        journal: Journal | None = None,
        marks: ReplayMarks | None = None,
        verify: bool = False,
        replay_inner_hooks: bool = False,
    ) -> None:
        """Args:
        policy: which units are dropped.
        lane: where a fill runs its replays; None: inline, on the calling thread.
        prefetch_cap_bytes: the most bytes that fills may bring back before backward uses them; None for no cap.
        backward_order: in which order the microbatches run backward, when `queue.expect` does not say.
        rng_providers: sources of randomness besides torch's default generators.
        context_providers: context managers that must be in force again in replays.
        journal: where to record what happens; None to record nothing.
        marks: mark begin and end of each replay in an event ring; None for no marks.
        verify: keep a copy of what is dropped and compare every replay with it, bit for bit.
        replay_inner_hooks: accept dropped units with forward hooks on modules inside of them, and run those hooks
            again in replays; for hooks that do no harm, or that ask `replaying`.
        """
        self.policy = policy
        self._state = RuntimeState(journal, marks, verify, replay_inner_hooks)
        self._rng = RngKeeper(rng_providers)
        ambient = Ambient(context_providers)
        self._recorder = Recorder(self._state, self._rng, ambient)
        self._replayer = Replayer(self._state, self._rng, ambient, lane or InlineLane())
        self._state.demand = self._replayer.demand
        self.queue = RecomputeQueue(self._state, self._replayer, prefetch_cap_bytes, backward_order == "lifo")
        pack, take = self._recorder.pack, operator.methodcaller("take")
        self._hooks = saved_tensors_hooks(pack_hook(self._state, pack), take_hook(self._state, take))
        self._units: dict[tuple[str, int], Unit] = {}
        self._attachments = Attachments()
        self._checked = False

    @property
    def ledger(self) -> Ledger:
        """Bytes that are kept, dropped, recomputed and prefetched now, and their peaks."""
        return self._state.ledger

    @property
    def replaying(self) -> bool:
        """Whether a replay runs now: for code with side effects that must not happen twice."""
        return self._state.replaying is not None

    @property
    def last_read(self) -> Place | None:
        """Whose tensor the running backward pass has read last: tells an error in backward its place (R14)."""
        read = self._state.last_read
        return None if read is None else Place(read[0].name, read[0].layer, read[2].key, read[1])

    @property
    def units(self) -> tuple[tuple[str, int], ...]:
        """(name, layer) of every unit."""
        return tuple(self._units)

    def attach(self, model: nn.Module, units: Iterable[str], first_layer: int = 0) -> None:
        """Make submodules of `model` units; see `find_units` for the patterns.

        Call it when the model is on its device: its parameters and buffers are told from activations by their storage.

        Args:
            model: whatever contains the units.
            units: patterns of paths, such as `blocks.*.norm`.
            first_layer: added to the layer numbers of the patterns, for a model in several parts.

        Raises:
            ConfigError: a pattern that matches nothing, or a module that is attached already.
        """
        matches = [match for pattern in units for match in find_units(model, pattern)]
        paths = dict(model.named_modules())
        members = {match.module for match in matches}
        for match in matches:
            number = match.layer if match.layer == NO_LAYER else first_layer + match.layer
            self.attach_unit(match.module, match.unit, number)
            layer = paths[match.layer_path] if match.layer_path is not None else None
            if layer is not None and layer not in members and layer not in self._attachments:
                self.attach_layer(layer, number)
        self.know_storages(model)

    def attach_unit(self, module: nn.Module, unit: str, layer: int = NO_LAYER) -> None:
        """Make one module the unit `unit` of layer `layer`."""
        site = self._new_unit(unit, layer, module)
        self._attachments.replace(module, lambda forward: UnitForward(site, self._recorder, module, forward))
        self._units[unit, layer] = site
        self.know_storages(module)

    def attach_layer(self, module: nn.Module, layer: int) -> None:
        """Attribute what is kept inside of `module` to layer `layer`."""
        self._attachments.replace(module, lambda forward: LayerForward(layer, self._recorder, module, forward))

    def declare(self, unit: str, layer: int = NO_LAYER) -> None:
        """Make a unit known that `run` will call."""
        self._units[unit, layer] = self._new_unit(unit, layer, None)

    def run(self, unit: str, layer: int, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call `function(*args, **kwargs)` as a call of unit `unit` of layer `layer`, which `declare` made known.

        `function` must compute the same thing when it is called again with the same arguments.
        """
        state = self._state
        if state.microbatch is None or state.running is not None or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        site = self._units.get((unit, layer))
        if site is None:
            raise ConfigError(
                f"a call of unit {unit!r} of layer {layer}, which is not known",
                "a unit that was declared before the first microbatch",
                f"call declare({unit!r}, {layer}) first",
            )
        result: Result = self._recorder.run_unit(site, function, args, kwargs)
        return result

    def know_storages(self, model: nn.Module) -> None:
        """Take note of the parameters and buffers of `model`; again, if they were moved to other storages."""
        for tensor in (*model.parameters(), *model.buffers()):
            self._rng.watch(tensor.device)
            storage = storage_of(tensor)
            if storage is not None:
                self._state.static[storage._cdata] = weakref.ref(storage)

    def set_policy(self, policy: Policy) -> None:
        """Another policy from the next microbatch on."""
        self.policy, self._checked = policy, False
        for unit in self._units.values():
            unit.dropped = policy.decision(unit.name, unit.layer) is Decision.RECOMPUTE

    def detach(self) -> None:
        """Put the `forward` of every attached module back."""
        self._attachments.restore()
        self._units.clear()
        self._state.static.clear()
        self._state.parameters.clear()
        if self._state.marks is not None:
            self._state.marks.forget()
        self._checked = False

    def microbatch(self, key: Hashable) -> "MicrobatchScope":
        """A context manager around the forward pass of one microbatch.

        Args:
            key: names it in messages and in `queue.expect`; unique among the microbatches in flight.
        """
        if not self._checked:
            self.policy.check(self._units)
            self._checked = True
        if torch.cuda.is_initialized():
            self._rng.watch(torch.device("cuda", torch.cuda.current_device()))
        return MicrobatchScope(self._state, self.queue, self._hooks, key)

    def materialize(self, key: Hashable, unit: str, layer: int = NO_LAYER, call: int = 0) -> bool:
        """Bring one unit of a microbatch back now, and before it what it depends on, whatever the cap says.

        Returns:
            Whether there was anything to do: False when nobody waits for it, when it is there, and in a replay.

        Raises:
            ReplayError: a replay failed.
        """
        microbatch = self.queue.find(key)
        for found in microbatch.living() if microbatch is not None and not self.replaying else ():
            if (found.unit.name, found.unit.layer, found.number) == (unit, layer, call) and found.is_wanted():
                self._replayer.open_lane()
                self._replayer.materialize(found, hidden=True)
                return True
        return False

    def step_end(self) -> StepReport:
        """Close the books of a step: every handle must have been consumed.

        Raises:
            UnfinishedError: handles are left; the message names the first ones.
        """
        state = self._state
        left = [call for microbatch in self.queue.microbatches() for call in microbatch.living() if call.entries]
        if left:
            raise _unfinished(left)
        report = report_step(self.queue.microbatches(), state.ledger, state.replays)
        self.abort()
        return report

    def abort(self) -> None:
        """Forget the microbatches in flight, after an error; their handles stay valid as long as their graphs live."""
        self.queue.clear()
        self._state.in_backward = self._state.last_read = None
        self._state.replays = ReplayCounts()
        self._state.ledger.start_step()

    def _new_unit(self, unit: str, layer: int, module: nn.Module | None) -> Unit:
        if (unit, layer) in self._units:
            raise ConfigError(
                f"unit {unit!r} of layer {layer} twice",
                "one unit of that name in a layer",
                "give the second one another name or layer",
            )
        return Unit(unit, layer, self.policy.decision(unit, layer) is Decision.RECOMPUTE, module)


def _unfinished(left: list[UnitCall]) -> UnfinishedError:
    shown = "; ".join(str(call.place) for call in left[:3])
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return UnfinishedError(
        f"handles of {len(left)} unit calls that nobody consumed before the end of the step ({shown}{more})",
        "a backward pass through every microbatch, and no graph that outlives it",
        "run backward before step_end(), drop losses and outputs whose graph is still referenced, or call abort()",
    )
