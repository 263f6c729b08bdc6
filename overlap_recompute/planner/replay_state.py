"""A solution that is changed by small moves: plain Python values, so that a move is tried in some microseconds.

A state may need more memory than there is: how much more is part of what a trial says. Everything else holds at all
times: a replay is in a window before its deadline, what it reads is in no later one. `outside`, one past the last
window, stands for on demand, and for units that are not replayed at all; nothing is hidden there.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from overlap_recompute.planner.policies import PolicyTable
from overlap_recompute.planner.problem import ON_DEMAND, Fill, StageSolution
from overlap_recompute.planner.workspace import Choice, Workspace, effective_deadlines

_ENOUGH_US = 1e18

Change = tuple[int, int, list[int]]
"""Layer, its policy and the window of each of its units."""


class Row(NamedTuple):
    """A policy of a layer kind with K units."""

    units: tuple[int, ...]
    """That are replayed, in forward order."""
    sources: tuple[tuple[int, ...], ...]
    """(K): replayed units that a unit reads."""
    readers: tuple[tuple[int, ...], ...]
    """(K): replayed units that read it."""
    due: tuple[int, ...]
    """(K): first window that comes too late, relative to the layer's own."""
    nbytes: tuple[int, ...]
    """(K): what each replay brings back."""
    kept_bytes: int
    working_bytes: int
    recompute_us: float
    near: tuple[int, ...]
    """Policies that drop one unit more or less."""
    further: tuple[int, ...]
    """Two units."""


class Kind:
    """Policies of a layer kind; rows are made when they are first needed."""

    __slots__ = ("times_us", "needs", "count", "table", "_rows", "_places")

    def __init__(self, table: PolicyTable, needs: Sequence[int]) -> None:
        self.times_us, self.needs, self.count = tuple(table.unit_us.tolist()), tuple(needs), len(table.names)
        self.table = table
        self._rows: list[Row | None] = [None] * len(table.masks)
        self._places = {mask: place for place, mask in enumerate(table.masks.tolist())}

    def row(self, policy: int) -> Row:
        """One policy."""
        return self._rows[policy] or self._made(policy)

    def _made(self, policy: int) -> Row:
        table, count = self.table, self.count
        mask, work = int(table.masks[policy]), int(table.work[policy])
        units = tuple(unit for unit in range(count) if work >> unit & 1)
        flips = [1 << unit for unit in range(count)]
        near = [mask ^ flip for flip in flips]
        further = [mask ^ one ^ two for place, one in enumerate(flips) for two in flips[:place]]
        nbytes = table.unit_bytes[policy].tolist()
        row = self._rows[policy] = Row(
            units=units,
            sources=tuple(tuple(other for other in units if table.reads[unit] >> other & 1) for unit in range(count)),
            readers=tuple(tuple(other for other in units if table.reads[other] >> unit & 1) for unit in range(count)),
            due=tuple(effective_deadlines(self.needs, table.reads, work)),
            nbytes=tuple(size if work >> unit & 1 else 0 for unit, size in enumerate(nbytes)),
            kept_bytes=int(table.kept_bytes[policy]),
            working_bytes=int(table.working_bytes[policy]),
            recompute_us=float(table.recompute_us[policy]),
            near=tuple(self._places[other] for other in near if other in self._places),
            further=tuple(self._places[other] for other in further if other in self._places),
        )
        return row


class Trial(NamedTuple):
    """What a state would be after some changes."""

    exposed_us: float
    over_bytes: int
    """More than the budget; negative: what is left."""
    changes: Sequence[Change]
    rows: list[Row]
    load: list[float]
    held: list[int]
    recompute_us: float
    hidden_us: float
    kept_bytes: int
    working_bytes: int


class State:
    """Policies and windows of all layers, with their sums."""

    __slots__ = (
        "kinds", "own", "first", "chunks", "lengths", "outside", "policies", "rows", "windows", "load", "exposed_us",
        "over_bytes", "_held", "_recompute_us", "_hidden_us", "_kept_bytes", "_working_bytes", "_in_flight", "_problem",
        "_backward",
    )  # fmt: skip

    def __init__(self, workspace: Workspace, start: StageSolution) -> None:
        problem = self._problem = workspace.problem
        kinds = []
        for number, table in enumerate(workspace.tables):
            layer = next(layer for layer in problem.layers if layer.kind == number)
            kinds.append(Kind(table, [deadline - layer.own_window for deadline in layer.deadlines]))
        self.kinds = [kinds[layer.kind] for layer in problem.layers]
        self.own = [layer.own_window for layer in problem.layers]
        self.first = [layer.first_window for layer in problem.layers]
        self.chunks = [layer.chunk for layer in problem.layers]
        self._in_flight = [problem.chunks[chunk].in_flight for chunk in self.chunks]
        self.lengths, self.outside = [*workspace.lengths, 0.0], len(workspace.lengths)
        self.policies = [kind.table.nearest(0) for kind in self.kinds]
        self.windows = [[self.outside] * kind.count for kind in self.kinds]
        # Outside there is always more than the length of zero that could be hidden.
        self.load, self._held = [0.0] * self.outside + [_ENOUGH_US], [0] * len(self.lengths)
        rows = self.rows = [kind.row(policy) for kind, policy in zip(self.kinds, self.policies, strict=True)]
        waiting = [problem.chunks[chunk].waiting_bytes for chunk in self.chunks]
        self._backward = [*zip(range(len(rows)), waiting, self.chunks, strict=True)][::-1]
        self._recompute_us, self._hidden_us = sum(row.recompute_us for row in rows), 0.0
        self._kept_bytes = sum(count * row.kept_bytes for count, row in zip(self._in_flight, rows, strict=True))
        self._working_bytes = self._working(rows)
        self.exposed_us, self.over_bytes = self._recompute_us, 0
        begin = self.trial(self._changes(start), math.inf, 0.0)
        assert begin is not None
        self.take(begin)

    def _changes(self, start: StageSolution) -> list[Change]:
        windows = {(fill.layer, fill.unit): fill.window for fill in start.fills}
        changes = []
        for layer, (kind, names) in enumerate(zip(self.kinds, start.dropped, strict=True)):
            policy = kind.table.nearest(kind.table.mask_of(names))
            units = kind.row(policy).units
            found = [
                windows.get((layer, unit), self.outside) if unit in units else self.outside
                for unit in range(kind.count)
            ]
            changes.append((layer, policy, found))
        return changes

    def trial(self, changes: Sequence[Change], limit_us: float, price_us: float) -> Trial | None:
        """What would come of changes to different layers; None if it would cost more than the limit.

        Args:
            changes: one for each layer.
            limit_us: for what is exposed, and for the bytes over the budget at their price.
            price_us: of such a byte.
        """
        load, hidden_us = self.load[:], self._hidden_us
        recompute_us, kept_bytes, rows = self._recompute_us, self._kept_bytes, self.rows
        for layer, policy, windows in changes:
            if policy != self.policies[layer]:
                before, row = self.rows[layer], self.kinds[layer].row(policy)
                recompute_us += row.recompute_us - before.recompute_us
                kept_bytes += self._in_flight[layer] * (row.kept_bytes - before.kept_bytes)
                rows = rows[:]
                rows[layer] = row
            hidden_us += self._loaded(layer, windows, load)
        exposed_us = recompute_us - hidden_us
        if exposed_us > limit_us:
            return None
        held = self._held[:]
        for layer, _, windows in changes:
            self._held_by(layer, windows, rows[layer].nbytes, held)
        working_bytes = self._working_bytes if rows is self.rows else self._working(rows)
        over_bytes = kept_bytes + max(held) + working_bytes - self._problem.budget_bytes
        if over_bytes > 0 and exposed_us + price_us * over_bytes > limit_us:
            return None
        return Trial(
            exposed_us, over_bytes, changes, rows, load, held, recompute_us, hidden_us, kept_bytes, working_bytes
        )

    def _loaded(self, layer: int, windows: list[int], load: list[float]) -> float:
        """Change the load of windows; how much more is hidden."""
        times_us, lengths, more_us = self.kinds[layer].times_us, self.lengths, 0.0
        for unit, (one, two) in enumerate(zip(self.windows[layer], windows, strict=True)):
            if one != two:
                time_us, length_us = times_us[unit], lengths[one]
                full = load[one]
                rest = load[one] = full - time_us
                more_us += (rest if rest < length_us else length_us) - (full if full < length_us else length_us)
                rest, length_us = load[two], lengths[two]
                full = load[two] = rest + time_us
                more_us += (full if full < length_us else length_us) - (rest if rest < length_us else length_us)
        return more_us

    def _held_by(self, layer: int, windows: list[int], after: tuple[int, ...], held: list[int]) -> None:
        """Change the bytes held in windows, from a replay to its need: none where the replay is outside."""
        own, needs, before = self.own[layer], self.kinds[layer].needs, self.rows[layer].nbytes
        for unit, (one, two) in enumerate(zip(self.windows[layer], windows, strict=True)):
            less, more = before[unit], after[unit]
            if one != two or less != more:
                need = own + needs[unit]
                if less:
                    for window in range(one, need):
                        held[window] -= less
                if more:
                    for window in range(two, need):
                        held[window] += more

    def _working(self, rows: Sequence[Row]) -> int:
        """As `combine_memory`."""
        chunks, most_bytes = self._problem.chunks, self._problem.floor_bytes
        freed = [chunk.freed_bytes for chunk in chunks]
        for layer, waiting_bytes, number in self._backward:
            row = rows[layer]
            working_bytes = row.working_bytes + waiting_bytes - freed[number]
            if working_bytes > most_bytes:
                most_bytes = working_bytes
            freed[number] += row.kept_bytes
        return max(most_bytes, *(c.end_bytes - freed[n] + c.freed_bytes for n, c in enumerate(chunks)))

    def take(self, trial: Trial) -> None:
        """Make the changes of a trial."""
        for layer, policy, windows in trial.changes:
            self.policies[layer], self.windows[layer] = policy, windows
        self.exposed_us, self.over_bytes = trial.exposed_us, trial.over_bytes
        self.rows, self.load, self._held = trial.rows, trial.load, trial.held
        self._recompute_us, self._hidden_us = trial.recompute_us, trial.hidden_us
        self._kept_bytes, self._working_bytes = trial.kept_bytes, trial.working_bytes

    def restore(self, policies: Sequence[int], windows: Sequence[list[int]]) -> None:
        """Go back to policies and windows of before."""
        before = self.trial([*zip(range(len(policies)), policies, windows, strict=True)], math.inf, 0.0)
        assert before is not None
        self.take(before)

    def decisions(self) -> tuple[Choice, list[Fill]]:
        """In the form that `assemble` takes."""
        fills = [
            Fill(layer=layer, unit=unit, window=windows[unit] if windows[unit] < self.outside else ON_DEMAND)
            for layer, windows in enumerate(self.windows)
            for unit in self.rows[layer].units
        ]
        return tuple(self.policies), [fill for fill in fills if fill.window != ON_DEMAND]
