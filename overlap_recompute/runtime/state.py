"""What the parts of one runtime share; one object per `Runtime`, never global."""

from collections.abc import Callable

import torch
from torch import Tensor

from overlap_recompute.runtime.calls import Microbatch, UnitCall
from overlap_recompute.runtime.handles import Entry, OutputRef
from overlap_recompute.runtime.home_stream import HomeStream
from overlap_recompute.runtime.journal import Journal
from overlap_recompute.runtime.ledger import Ledger
from overlap_recompute.runtime.marks import ReplayMarks
from overlap_recompute.runtime.storages import Kept, KeptStorage, KeptTable, StaticTable
from overlap_recompute.runtime.units import Unit

Read = tuple[Unit, int, Microbatch]
"""A tensor of a dropped unit that backward read: unit, number of the call, microbatch. Not the call, which must die."""
NO_LAYER = -1
"""The layer to which what lies outside of every layer is attributed."""


class RuntimeState:
    """Where the runtime is, and what it knows about storages."""

    __slots__ = (
        "microbatch", "running", "argument", "layer", "replaying", "in_backward", "last_read", "seen", "outputs",
        "kept", "static", "parameters", "ledger", "journal", "marks", "verify", "replay_inner_hooks", "demand",
        "replays", "captured", "home",
    )  # fmt: skip

    def __init__(
        self, journal: Journal | None, marks: ReplayMarks | None, verify: bool, replay_inner_hooks: bool
    ) -> None:
        self.microbatch: Microbatch | None = None
        """The microbatch whose forward pass runs; None in replays and outside."""
        self.running: UnitCall | None = None
        """The dropped call whose forward pass runs."""
        self.argument: Tensor | None = None
        """Its first argument."""
        self.home: HomeStream | None = None
        """The stream of the latest forward pass; None without a CUDA device."""
        self.layer = NO_LAYER
        """The layer that runs, for attributing bytes."""
        self.replaying: UnitCall | None = None
        self.captured = 0
        """Tensors that its replay has saved so far."""
        self.in_backward: Microbatch | None = None
        """The microbatch whose backward pass used something last."""
        self.last_read: Read | None = None
        """What that was; None from the beginning of a forward pass on."""
        self.seen: dict[int, Entry] = {}
        """Storages that the running call saved inside itself, by address: their first entry."""
        self.outputs: dict[int, OutputRef] = {}
        self.kept: KeptTable = {}
        self.static: StaticTable = {}
        """Parameters and buffers."""
        self.parameters: dict[int, Kept] = {}
        """What stands for a parameter of an attached model, by its identity: one object until the parameter changes."""
        self.ledger = Ledger()
        self.journal, self.marks = journal, marks
        self.verify = verify
        self.replay_inner_hooks = replay_inner_hooks
        self.demand: Callable[[UnitCall], None]
        self.replays = ReplayCounts()

    def is_elsewhere(self) -> bool:
        """Whether work goes to another stream than that of the forward pass."""
        return self.home is not None and self.home.is_left()

    def is_static(self, storage: torch.UntypedStorage, key: int) -> bool:
        """Whether this is the storage of a parameter, or of a buffer, of an attached model."""
        ref = self.static.get(key)
        return ref is not None and ref() is storage

    def is_kept(self, key: int) -> bool:
        """Whether the storage at this address stays in memory anyway (a record lives only while its storage does)."""
        ref = self.kept.get(key)
        return ref is not None and ref() is not None

    def keep(self, storage: torch.UntypedStorage, key: int) -> KeptStorage:
        """The record of a storage that stays in memory, made on first sight."""
        ref = self.kept.get(key)
        record = ref() if ref is not None else None
        if record is None:
            microbatch = self.microbatch
            assert microbatch is not None, "the hooks are in force only in a microbatch"
            record = KeptStorage(self.ledger, self.kept, key, storage.nbytes(), microbatch.tally(self.layer))
        return record


class ReplayCounts:
    """Replays of a step: how many, and for how long the host was busy with them."""

    __slots__ = ("hidden", "exposed", "hidden_ns", "exposed_ns")

    def __init__(self) -> None:
        self.hidden = self.exposed = self.hidden_ns = self.exposed_ns = 0

    def add(self, hidden: bool, duration_ns: int) -> None:
        """One replay has ended."""
        if hidden:
            self.hidden += 1
            self.hidden_ns += duration_ns
        else:
            self.exposed += 1
            self.exposed_ns += duration_ns
