"""Many packings at once: list scheduling in numpy, one lane for each pair of a choice of policies and an order of jobs.

A lane takes its jobs in the order of its keys. A job takes along what it reads and what is not placed yet, all of it
into one window: among the windows with time for a share of at least `least` of it, where memory allows, the latest one,
or one that it fills well (`fit`). Every step does this for all lanes together: fifty lanes cost little more than one.

Bytes are held from the window of the replay until need. So a window is open to a group of jobs if all windows from it
on have memory left, and the open ones lie behind the last that has not.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from overlap_recompute.planner.policies import Floats, Ints
from overlap_recompute.planner.problem import ON_DEMAND
from overlap_recompute.planner.workspace import Workspace, effective_deadlines

_SLACK_US = 1e-6
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lanes:
    """What to pack, and how: N lanes."""

    choices: Ints
    """(N, layers): rows of the policy tables."""
    keys: Floats
    """(N, layers, units): jobs with small ones first."""
    least: Floats
    """(N): share of a group that must fit into a window."""
    fit: Floats
    """(N): 0: the latest window; 1: the one with least room left."""


class _Kind(NamedTuple):
    """Tables of a kind, padded to U units."""

    work: Bools
    """(P, U)"""
    nbytes: Floats
    """(P, U)"""
    deadlines: Ints
    """(P, U): relative to the layer's own first window."""
    needs: Ints
    """(U): the same for backward's need."""
    times: Floats
    """(U)"""
    sources: Bools
    """(U, U): what a unit reads, directly or not, and itself."""


class Board:
    """The jobs of a workspace as arrays."""

    __slots__ = ("workspace", "units", "_kinds")

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.units = max((len(table.names) for table in workspace.tables), default=0)
        self._kinds = [self._kind(number) for number in range(len(workspace.tables))]

    def _kind(self, number: int) -> _Kind:
        table, units = self.workspace.tables[number], self.units
        layer = next(layer for layer in self.workspace.problem.layers if layer.kind == number)
        classes = [deadline - layer.own_window for deadline in layer.deadlines]
        count, size = len(table.names), len(table.masks)
        work = np.zeros((size, units), dtype=bool)
        work[:, :count] = table.work[:, None] >> np.arange(count) & 1 == 1
        nbytes, deadlines = np.zeros((size, units)), np.zeros((size, units), dtype=np.int64)
        nbytes[:, :count] = np.where(work[:, :count], table.unit_bytes, 0)
        deadlines[:, :count] = [effective_deadlines(classes, table.reads, mask) for mask in table.work.tolist()]
        sources = np.eye(units, dtype=bool)
        for unit in range(count):  # forward order: sources come first
            for other in range(unit):
                if table.reads[unit] >> other & 1:
                    sources[unit] |= sources[other]
        needs, times = np.zeros(units, dtype=np.int64), np.zeros(units)
        needs[:count], times[:count] = classes, table.unit_us
        return _Kind(work, nbytes, deadlines, needs, times, sources)

    def gather(self, choices: Ints, layers: list[int]) -> "_Jobs":
        """(N, layers, U) arrays for choices."""
        parts = [self.workspace.problem.layers[layer] for layer in layers]
        kinds = [self._kinds[part.kind] for part in parts]
        own = np.array([part.own_window for part in parts])
        return _Jobs(
            work=np.stack([kind.work[choices[:, i]] for i, kind in zip(layers, kinds, strict=True)], axis=1),
            nbytes=np.stack([kind.nbytes[choices[:, i]] for i, kind in zip(layers, kinds, strict=True)], axis=1),
            deadlines=np.stack([kind.deadlines[choices[:, i]] for i, kind in zip(layers, kinds, strict=True)], axis=1)
            + own[None, :, None],
            needs=np.stack([kind.needs for kind in kinds]) + own[:, None],
            times=np.stack([kind.times for kind in kinds]),
            sources=np.stack([kind.sources for kind in kinds]),
        )


class _Jobs(NamedTuple):
    work: Bools
    nbytes: Floats
    deadlines: Ints
    needs: Ints
    times: Floats
    sources: Bools


class Result(NamedTuple):
    """A packing for each lane."""

    exposed_us: Floats
    """(N)"""
    windows: Ints
    """(N, layers, units), ON_DEMAND where there is none."""


def pack_lanes(board: Board, lanes: Lanes, room: Ints) -> Result:
    """Pack all lanes.

    Args:
        board: jobs.
        lanes: choices and orders.
        room: (N) bytes that may be prefetched at a time.
    """
    problem = board.workspace.problem
    windows = np.full((len(room), len(problem.layers), board.units), ON_DEMAND, dtype=np.int64)
    exposed = np.zeros(len(room))
    for number in range(len(problem.chunks)):
        layers = board.workspace.chunk(number)
        if layers:
            exposed += _pack_chunk(board, lanes, room, number, layers, windows)
    return Result(exposed, windows)


def _pack_chunk(board: Board, lanes: Lanes, room: Ints, number: int, layers: list[int], windows: Ints) -> Floats:
    """Fill in the windows of a chunk's jobs; (N) exposed time."""
    first, stop = board.workspace.span(number)
    jobs, count, units = board.gather(lanes.choices, layers), len(room), board.units
    lengths = np.array(board.workspace.lengths[first:stop], dtype=np.float64)
    total = np.einsum("nlu,lu->n", jobs.work, jobs.times)
    if stop == first:
        return total
    keys = np.where(jobs.work, lanes.keys[:, layers], np.inf).reshape(count, -1)
    order = np.argsort(keys, axis=1, kind="stable")
    steps = int(jobs.work.reshape(count, -1).sum(axis=1).max(initial=0))
    span, rows = np.arange(stop - first), np.arange(count)
    left, free = np.tile(lengths, (count, 1)), np.repeat(room[:, None].astype(np.float64), len(span), axis=1)
    placed = np.full((count * len(layers), units), -1, dtype=np.int64)
    penalty = lanes.fit * len(span)
    longest_us = max(float(lengths.max(initial=0.0)), 1e-9)
    # Bytes of a unit count in the windows before its need.
    before = (span < (jobs.needs - first)[:, :, None]).astype(np.float64)
    all_work, all_bytes = jobs.work.reshape(-1, units), jobs.nbytes.reshape(-1, units)
    deadlines, sources = jobs.deadlines.reshape(-1, units) - first, jobs.sources.reshape(-1, units)
    for step in range(steps):
        job = order[:, step]
        layer = job // units
        line = rows * len(layers) + layer
        group, at = sources.take(job, axis=0) & all_work.take(line, axis=0), placed.take(line, axis=0)
        low = np.where(group, at, -1).max(axis=1)
        group &= at < 0
        time_us = (group * jobs.times.take(layer, axis=0)).sum(axis=1)
        high = np.where(group, deadlines.take(line, axis=0), len(span)).min(axis=1)
        held = group * all_bytes.take(line, axis=0)
        more = np.matmul(held[:, None, :], before.take(layer, axis=0))[:, 0]
        low = np.maximum(low, np.where(more > free, span, -1).max(axis=1) + 1)
        gain = np.minimum(left, time_us[:, None])
        fine = gain > np.maximum(lanes.least * time_us - _SLACK_US, _SLACK_US)[:, None]
        fine &= (span >= low[:, None]) & (span < high[:, None])
        waste = (np.abs(left - time_us[:, None])) * (penalty / longest_us)[:, None]
        best = np.where(fine, span - waste, -np.inf).argmax(axis=1)
        done = fine[rows, best] & group.any(axis=1)
        left[rows, best] -= np.where(done, time_us, 0.0)
        free -= more * ((span >= best[:, None]) & done[:, None])
        placed[line] = np.where(group & done[:, None], best[:, None], at)
    found = placed.reshape(count, len(layers), units)
    windows[:, layers] = np.where(found >= 0, found + first, ON_DEMAND)
    return np.asarray(total - (lengths - np.maximum(left, 0.0)).sum(axis=1))
