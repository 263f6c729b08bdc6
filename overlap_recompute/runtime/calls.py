"""Calls of units in a microbatch (docs/runtime.md, R1, R4, R5)."""

import enum
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from overlap_recompute.runtime.errors import Place
from overlap_recompute.runtime.handles import Entry, Handle
from overlap_recompute.runtime.journal import Kind
from overlap_recompute.runtime.storages import Tally

if TYPE_CHECKING:
    from overlap_recompute.runtime.lanes import Fence
    from overlap_recompute.runtime.state import RuntimeState
    from overlap_recompute.runtime.units import Unit


class Phase(enum.Enum):
    """How far a call of a dropped unit has come."""

    FORWARD = enum.auto()
    DROPPED = enum.auto()
    REPLAYING = enum.auto()
    PRESENT = enum.auto()
    FAILED = enum.auto()


# Reading a member of an enumeration takes three times as long as reading a global.
FORWARD, DROPPED = Phase.FORWARD, Phase.DROPPED


class Microbatch:
    """One forward pass: its calls in order, and its bytes by layer."""

    __slots__ = ("key", "calls", "counts", "cursor", "alive", "complete", "trains", "tallies", "totals", "__weakref__")

    def __init__(self, key: Hashable, trains: bool) -> None:
        self.key, self.trains = key, trains
        self.calls: list[weakref.ref[UnitCall]] = []
        self.counts: dict[Unit, int] = {}
        self.cursor = 0
        """Calls from here on are dead or present: the queue need not look at them again."""
        self.alive = 0
        self.complete = False
        self.tallies: dict[int, Tally] = {}
        """Bytes by layer, while the forward pass runs."""
        self.totals: tuple[tuple[int, int, int], ...] = ()
        """(layer, kept bytes, dropped bytes), when it has ended."""

    def tally(self, layer: int) -> Tally:
        """The bytes of one layer."""
        found = self.tallies.get(layer)
        if found is None:
            found = self.tallies[layer] = Tally(self.key, layer)
        return found

    def close(self) -> None:
        """The forward pass has ended; what stays for the report are numbers, which the garbage collector skips."""
        self.complete, self.cursor = True, len(self.calls)
        for tally in self.tallies.values():
            tally.closed = True
        self.totals = tuple((t.layer, t.kept_bytes, t.dropped_bytes) for _, t in sorted(self.tallies.items()))
        self.tallies, self.counts = {}, {}
        if not self.alive:
            self.forget_calls()

    def forget_calls(self) -> None:
        """Every call is dead: forget even the weak references, of which a step of many microbatches has many."""
        self.calls, self.cursor = [], 0

    def living(self) -> Iterator["UnitCall"]:
        """The calls that somebody still refers to, in forward order."""
        return (call for ref in self.calls if (call := ref()) is not None)


class UnitCall:
    """One call of a dropped unit: what it takes to run it again, and who waits for the result."""

    __slots__ = (
        "state", "unit", "microbatch", "tally", "number", "forward", "args", "kwargs", "nested", "saved_count",
        "entries", "output_count", "references", "phase", "hidden", "postponed", "untouched", "ambient", "rng", "fence",
        "__weakref__",
    )  # fmt: skip

    def __init__(
        self, state: "RuntimeState", unit: "Unit", microbatch: Microbatch, number: int, forward: Callable[..., Any]
    ) -> None:
        self.state, self.unit, self.microbatch, self.number, self.forward = state, unit, microbatch, number, forward
        microbatch.alive += 1
        self.tally = microbatch.tally(unit.layer)
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] | None = None
        self.nested: list[Handle] | None = None
        """Handles inside of arguments that are containers; None when no argument is a container."""
        self.saved_count = 0
        """Tensors that the forward pass saved inside the unit."""
        self.entries: dict[int, Entry] = {}
        """Dropped tensors that a handle refers to: by position among the saved ones, outputs by `~index`."""
        self.output_count = 0
        self.references: dict[int, Tensor] | None = None
        """Copies of the outputs, to verify the replay."""
        self.phase = FORWARD
        self.hidden = self.postponed = False
        self.untouched = True
        self.ambient: Any = None
        self.rng: Any = None
        self.fence: Fence | None = None

    @property
    def place(self) -> Place:
        """Unit, layer, microbatch and call, for messages and the journal."""
        return Place(self.unit.name, self.unit.layer, self.microbatch.key, self.number)

    def is_dropped(self) -> bool:
        """Whether the forward pass is over and the call was not replayed yet."""
        return self.phase is DROPPED

    def is_wanted(self) -> bool:
        """Whether a replay would bring back anything that somebody waits for."""
        return self.phase is DROPPED and bool(self.entries)

    def add_entry(self, entry: Entry) -> Entry:
        """A tensor of this call is dropped."""
        self.entries[entry.position] = entry
        if entry.account is not None:
            entry.account.sharers += 1
        else:
            self.state.ledger.dropped_bytes += entry.nbytes
            self.tally.dropped_bytes += entry.nbytes
        return entry

    def release(self, entry: Entry) -> None:
        """The last handle of an entry died; with the last entry on a storage goes the storage."""
        del self.entries[entry.position]
        account = entry.account or entry
        account.sharers = sharers = account.sharers - 1
        if sharers:
            return
        self.state.ledger.let_go(account)
        tally = self.tally
        if not tally.closed:
            tally.dropped_bytes -= account.nbytes

    def fill(self, entry: Entry, tensor: Tensor, hidden: bool) -> None:
        """A replay hands over the tensor of an entry."""
        entry.version = tensor._version
        entry.tensor = tensor.detach() if tensor.requires_grad else tensor
        account = entry.account or entry
        if not account.present:
            self.state.ledger.bring_back(account, hidden)

    def take_away(self) -> None:
        """The replay failed after it had filled some entries."""
        for entry in self.entries.values():
            entry.tensor = None
            self.state.ledger.take_away(entry.account or entry)

    def replay_bytes(self) -> int:
        """What a replay would bring back now, each storage counted once."""
        return sum(a.nbytes for a in {entry.account or entry for entry in self.entries.values()} if not a.present)

    def pending_source(self) -> "UnitCall | None":
        """A call that must be replayed before this one because this one needs its output."""
        arguments: Iterable[Any] = self.args
        if self.kwargs or self.nested:
            arguments = (*self.args, *(self.kwargs or {}).values(), *(self.nested or ()))
        for argument in arguments:
            if type(argument) is Handle and argument.is_pending():
                return argument.call
        return None

    def first_use(self) -> None:
        """Backward reads something of this call for the first time."""
        self.untouched = False
        self.state.in_backward = self.microbatch
        if self.hidden:
            for entry in self.entries.values():
                self.state.ledger.use(entry.account or entry)
        if self.state.journal is not None:
            self.state.journal.add(Kind.USE, self.place, self.hidden)

    def forget_arguments(self) -> None:
        """Let go of what only a replay needs."""
        self.args, self.kwargs, self.nested = (), None, None
        self.references = self.ambient = self.rng = None

    def __del__(self) -> None:
        microbatch = self.microbatch
        microbatch.alive -= 1
        if not microbatch.alive and microbatch.complete:
            microbatch.forget_calls()
        if self.state.journal is not None and self.phase is not FORWARD:
            self.state.journal.add(Kind.RELEASE, self.place, self.hidden)
