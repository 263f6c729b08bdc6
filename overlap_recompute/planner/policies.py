"""Layer policies: every set of units that a layer may drop, with its price, and those that are worth a look.

NOTE [ when a policy is dominated ]
1. Dropping fewer units is never worse in time: what is needed of a set's replays is a subset of what is needed of a
   larger one, and every window assignment of the larger one is one of the smaller one when the others are left out.
2. So a policy that drops a proper subset of another's units, and needs no more kept bytes and no more working set,
   makes the other one superfluous. This loses no solution (`exact`).
3. For fast planners policies are compared by kept bytes and by the load before each deadline alone (`front`): which
   units make up the load no longer matters. This may lose a solution whose units fit their windows better.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.memory import layer_working_set_bytes
from overlap_recompute.plan.profile import LayerKind

MOST_UNITS = 12
"""Units of a layer that may be dropped: 4096 policies."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyTable:
    """Prices of P policies of a layer kind with K units."""

    names: tuple[str, ...]
    """Of the units, in forward order."""
    unit_us: Floats
    """(K): time of a replay."""
    reads: tuple[int, ...]
    """For each unit the units that it reads, as bits."""
    masks: Ints
    """(P): dropped units as bits."""
    work: Ints
    """(P): those of them that have to be replayed."""
    kept_bytes: Ints
    """(P): for one microbatch."""
    working_bytes: Ints
    """(P): working set of the backward pass, all on demand."""
    unit_bytes: Ints
    """(P, K): what each replay brings back."""
    recompute_us: Floats
    """(P): all replays."""

    def dropped(self, policy: int) -> frozenset[str]:
        """Names of the dropped units."""
        mask = int(self.masks[policy])
        return frozenset(name for unit, name in enumerate(self.names) if mask >> unit & 1)

    def rows(self, chosen: Ints) -> "PolicyTable":
        """The table of some of its policies."""
        return PolicyTable(
            names=self.names,
            unit_us=self.unit_us,
            reads=self.reads,
            masks=self.masks[chosen],
            work=self.work[chosen],
            kept_bytes=self.kept_bytes[chosen],
            working_bytes=self.working_bytes[chosen],
            unit_bytes=self.unit_bytes[chosen],
            recompute_us=self.recompute_us[chosen],
        )

    def mask_of(self, dropped: frozenset[str]) -> int:
        """These units as bits."""
        return sum(1 << unit for unit, name in enumerate(self.names) if name in dropped)

    def find(self, dropped: frozenset[str]) -> int:
        """Row of the policy that drops these units."""
        return int(np.flatnonzero(self.masks == self.mask_of(dropped))[0])

    def nearest(self, mask: int) -> int:
        """Row of the policy that drops these units (bits), or of the one that drops most of them and nothing else."""
        sizes = [each.bit_count() if each & ~mask == 0 else -1 for each in self.masks.tolist()]
        return int(np.argmax(sizes))


def price_policies(kind: LayerKind, *, with_working: bool = True) -> PolicyTable:
    """All policies of a layer kind: units that must be kept are in none; the first policy drops nothing.

    Args:
        kind: the layer.
        with_working: price the working set as well; else it is 0, for `priced_working` to fill in later.

    Raises:
        ConfigError: more units than can be enumerated.
    """
    free = [index for index, unit in enumerate(kind.units) if unit.refusal is None]
    if len(free) > MOST_UNITS:
        raise ConfigError(
            f"{len(free)} units that can be dropped in a layer ({kind.description})",
            f"at most {MOST_UNITS}",
            "join small units that are always dropped together into one",
        )
    masks = np.zeros(1 << len(free), dtype=np.int64)
    for bit, unit in enumerate(free):
        masks |= (np.arange(len(masks)) >> bit & 1) << unit
    names = tuple(unit.name for unit in kind.units)
    index_of = {name: index for index, name in enumerate(names)}
    drops = masks[:, None] >> np.arange(len(names)) & 1 == 1
    kept = np.zeros(len(masks), dtype=np.int64)
    brought = np.zeros((len(masks), len(names)), dtype=np.int64)
    for row in kind.storages:
        wanted = np.full(len(masks), row.held)
        for reader in row.replay_readers:
            wanted |= drops[:, index_of[reader]]
        if row.maker is None:
            kept += row.nbytes * wanted
        else:
            made = drops[:, index_of[row.maker]]
            kept += row.nbytes * (wanted & ~made)
            brought[:, index_of[row.maker]] += row.nbytes * (wanted & made)
    reads = tuple(sum(1 << index_of[name] for name in unit.reads) for unit in kind.units)
    work = _work(kind, masks, reads)
    unit_us = np.array([unit.forward_us for unit in kind.units])
    table = PolicyTable(
        names=names,
        unit_us=unit_us,
        reads=reads,
        masks=masks,
        work=work,
        kept_bytes=kept,
        working_bytes=np.zeros(len(masks), dtype=np.int64),
        unit_bytes=brought,
        recompute_us=(work[:, None] >> np.arange(len(names)) & 1) @ unit_us,
    )
    return priced_working(kind, table) if with_working else table


def priced_working(kind: LayerKind, table: PolicyTable, known: dict[int, int] | None = None) -> PolicyTable:
    """The table with working sets, which take longer to price than all else.

    Args:
        kind: the layer.
        table: its policies.
        known: working sets of this kind by dropped units (bits), looked up and added to.
    """
    known = {} if known is None else known
    masks = table.masks.tolist()
    for policy, mask in enumerate(masks):
        if mask not in known:
            known[mask] = layer_working_set_bytes(kind, table.dropped(policy))
    return replace(table, working_bytes=np.array([known[mask] for mask in masks]))


def _work(kind: LayerKind, masks: Ints, reads: tuple[int, ...]) -> Ints:
    """Dropped units that backward needs, or that the replay of such a one reads."""
    needed = {unit for step in kind.backward for unit in step.needs}
    needed_mask = sum(1 << index for index, unit in enumerate(kind.units) if unit.name in needed)
    work = masks & needed_mask
    for _ in kind.units:  # a chain is at most as long as there are units
        for unit, mask in enumerate(reads):
            work |= np.where(work >> unit & 1, masks & mask, 0)
    return work


def exact(table: PolicyTable) -> PolicyTable:
    """Without superfluous policies; see NOTE [ when a policy is dominated ], 2."""
    masks, kept, working = table.masks, table.kept_bytes, table.working_bytes
    keep = [
        index
        for index in range(len(masks))
        if not np.any(
            (masks & ~masks[index] == 0) & (masks != masks[index]) & (kept <= kept[index]) & (working <= working[index])
        )
    ]
    return table.rows(np.array(keep, dtype=np.int64))


def front(table: PolicyTable, loads: Floats, rests: Floats) -> PolicyTable:
    """The Pareto front of kept bytes and load before each deadline; see NOTE [ when a policy is dominated ], 3.

    Args:
        table: priced policies.
        loads: (P, C) replay time that is needed before each of C deadlines and after the one before.
        rests: (P) replay time that cannot be hidden and is in none of the loads.
    """
    costs = np.column_stack([table.kept_bytes, np.cumsum(loads, axis=1), rests])
    order = np.lexsort((table.masks, *costs.T[::-1]))
    costs = costs[order]
    no_worse = np.all(costs[:, None, :] <= costs[None, :, :], axis=2)
    earlier = np.arange(len(order))[:, None] < np.arange(len(order))[None, :]
    dominated = np.any(no_worse & earlier, axis=0)
    return table.rows(order[~dominated])
