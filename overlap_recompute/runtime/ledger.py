"""Bytes held for backward, counted once per storage and exactly (docs/runtime.md, R12)."""

from overlap_recompute.runtime.handles import Entry


class Ledger:
    """Live byte counts of one runtime, and their peaks since `start_step`.

    `kept_bytes`: storages that stay in memory from forward to backward (parameters and buffers are not counted).
    `dropped_bytes`: storages that handles stand for and that are not in memory.
    `recomputed_bytes`: storages that replays brought back and that a handle still refers to.
    `prefetched_bytes`: the part of those that a fill brought back and that backward has not used yet.
    """

    __slots__ = (
        "kept_bytes",
        "dropped_bytes",
        "recomputed_bytes",
        "prefetched_bytes",
        "kept_peak_bytes",
        "held_peak_bytes",
        "prefetched_peak_bytes",
    )

    def __init__(self) -> None:
        self.kept_bytes = self.dropped_bytes = self.recomputed_bytes = self.prefetched_bytes = 0
        self.start_step()

    @property
    def held_bytes(self) -> int:
        """What is in memory for backward now: kept and recomputed."""
        return self.kept_bytes + self.recomputed_bytes

    def start_step(self) -> None:
        """Let the peaks begin at what is held now."""
        self.kept_peak_bytes = self.kept_bytes
        self.held_peak_bytes = self.kept_bytes + self.recomputed_bytes
        self.prefetched_peak_bytes = self.prefetched_bytes

    def keep(self, nbytes: int) -> None:
        """A storage is kept from now on."""
        self.kept_bytes += nbytes
        if self.kept_bytes > self.kept_peak_bytes:
            self.kept_peak_bytes = self.kept_bytes
        held_bytes = self.kept_bytes + self.recomputed_bytes
        if held_bytes > self.held_peak_bytes:
            self.held_peak_bytes = held_bytes

    def bring_back(self, account: Entry, hidden: bool) -> None:
        """A dropped storage is in memory again."""
        account.present, account.prefetched = True, hidden
        self.dropped_bytes -= account.nbytes
        self.recomputed_bytes += account.nbytes
        held_bytes = self.kept_bytes + self.recomputed_bytes
        if held_bytes > self.held_peak_bytes:
            self.held_peak_bytes = held_bytes
        if hidden:
            self.prefetched_bytes += account.nbytes
            if self.prefetched_bytes > self.prefetched_peak_bytes:
                self.prefetched_peak_bytes = self.prefetched_bytes

    def use(self, account: Entry) -> None:
        """Backward reads it: from now on it is part of what on-demand recompute would hold as well."""
        if account.prefetched:
            account.prefetched = False
            self.prefetched_bytes -= account.nbytes

    def take_away(self, account: Entry) -> None:
        """The replay that had brought it back failed later on."""
        self.use(account)
        if account.present:
            account.present = False
            self.recomputed_bytes -= account.nbytes
            self.dropped_bytes += account.nbytes

    def let_go(self, account: Entry) -> None:
        """Nobody refers to the storage any more."""
        if account.prefetched:
            self.use(account)
        if account.present:
            self.recomputed_bytes -= account.nbytes
        else:
            self.dropped_bytes -= account.nbytes
