"""A stage problem with its policies priced: what planners work on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from overlap_recompute.planner.assignment import Jobs, Packed
from overlap_recompute.planner.packing import Effort, fractional_exposed_us, pack
from overlap_recompute.planner.policies import Floats, PolicyTable
from overlap_recompute.planner.problem import ON_DEMAND, Fill, StageProblem, StageSolution, combine_memory

Choice = tuple[int, ...]
"""For each layer of the problem a policy of its kind's table."""


class _Template(NamedTuple):
    """Replays of one layer under one policy, each behind those that read it; windows relative to the layer's own."""

    units: tuple[int, ...]
    times_us: tuple[float, ...]
    nbytes: tuple[int, ...]
    needs: tuple[int, ...]
    deadlines: tuple[int, ...]
    readers: tuple[int, ...]
    sources: tuple[int, ...]


class Workspace:
    """A problem and the policies that each kind of its layers may take."""

    __slots__ = ("problem", "tables", "lengths", "longest_us", "loads", "rests", "_chunks", "_spans", "_templates")

    def __init__(self, problem: StageProblem, tables: Sequence[PolicyTable]) -> None:
        """`tables`: for each kind of the problem."""
        self.problem, self.tables = problem, tuple(tables)
        self.lengths = tuple(window.length_us for window in problem.windows)
        self.longest_us = max(self.lengths, default=0.0)
        self.loads = tuple(loads(problem, kind, table) for kind, table in enumerate(self.tables))
        """For each kind (P, C) replay time by deadline class, without the rests."""
        self.rests = tuple(rests(problem, table) for table in self.tables)
        """For each kind (P) what no window can hide, because it is part of a unit that is longer than any."""
        numbers = range(len(problem.chunks))
        self._chunks = [[i for i, layer in enumerate(problem.layers) if layer.chunk == number] for number in numbers]
        starts = {layer.chunk: layer.first_window for layer in problem.layers}
        self._spans = [
            (
                starts.get(number, 0),
                min((start for chunk, start in starts.items() if chunk > number), default=len(self.lengths)),
            )
            for number in numbers
        ]
        self._templates: dict[tuple[int, int], _Template] = {}

    def table(self, layer: int) -> PolicyTable:
        """Policies of a layer."""
        return self.tables[self.problem.layers[layer].kind]

    def chunk(self, number: int) -> list[int]:
        """Layers of a chunk."""
        return self._chunks[number]

    def span(self, number: int) -> tuple[int, int]:
        """First window of a chunk's timeline, and one past its last."""
        return self._spans[number]

    def memory(self, choice: Sequence[int]) -> tuple[int, int]:
        """Kept bytes and working set."""
        tables = [self.table(layer) for layer in range(len(choice))]
        return combine_memory(
            self.problem,
            [int(table.kept_bytes[policy]) for table, policy in zip(tables, choice, strict=True)],
            [int(table.working_bytes[policy]) for table, policy in zip(tables, choice, strict=True)],
        )

    def template(self, layer: int, policy: int) -> _Template:
        """Replays of a layer under a policy."""
        each = self.problem.layers[layer]
        found = self._templates.get((each.kind, policy))
        if found is None:
            classes = [deadline - each.own_window for deadline in each.deadlines]
            found = self._templates[each.kind, policy] = _template(self.tables[each.kind], policy, classes)
        return found


def _template(table: PolicyTable, policy: int, classes: Sequence[int]) -> _Template:
    work = int(table.work[policy])
    units = reader_order(table.reads, work)
    effective = effective_deadlines(classes, table.reads, work)
    bits = {unit: 1 << index for index, unit in enumerate(units)}
    return _Template(
        units=tuple(units),
        times_us=tuple(float(table.unit_us[unit]) for unit in units),
        nbytes=tuple(int(table.unit_bytes[policy, unit]) for unit in units),
        needs=tuple(classes[unit] for unit in units),
        deadlines=tuple(effective[unit] for unit in units),
        readers=tuple(sum(bits[other] for other in units if table.reads[other] >> unit & 1) for unit in units),
        sources=tuple(sum(bits[other] for other in units if table.reads[unit] >> other & 1) for unit in units),
    )


def loads(problem: StageProblem, kind: int, table: PolicyTable) -> Floats:
    """(P, C) replay time of each policy by deadline class.

    Class k is needed behind the first k windows of the layer's own backward pass. A unit that a replayed one reads is
    needed as early as that one.
    """
    layer = next(layer for layer in problem.layers if layer.kind == kind)
    classes = [deadline - layer.own_window for deadline in layer.deadlines]
    times = np.zeros((len(table.masks), max(classes, default=0) + 1))
    unit_us = np.minimum(table.unit_us, _longest_us(problem))
    for policy, work in enumerate(table.work.tolist()):
        for unit, deadline in enumerate(effective_deadlines(classes, table.reads, work)):
            if work >> unit & 1:
                times[policy, deadline] += unit_us[unit]
    return times


def rests(problem: StageProblem, table: PolicyTable) -> Floats:
    """(P) replay time beyond the longest window, unit by unit."""
    over = np.maximum(0.0, table.unit_us - _longest_us(problem))
    return np.asarray((table.work[:, None] >> np.arange(len(over)) & 1) @ over)


def _longest_us(problem: StageProblem) -> float:
    return max((window.length_us for window in problem.windows), default=0.0)


def effective_deadlines(deadlines: Sequence[int], reads: Sequence[int], work: int) -> list[int]:
    """Deadlines with those of replayed readers taken into account."""
    found = list(deadlines)
    changed = True
    while changed:
        changed = False
        for unit, mask in enumerate(reads):
            if work >> unit & 1:
                for source in range(len(found)):
                    if mask & work & 1 << source and found[source] > found[unit]:
                        found[source], changed = found[unit], True
    return found


def jobs_of(workspace: Workspace, choice: Choice, chunk: int) -> Jobs:
    """The replays of one chunk, latest need first, what others read behind those."""
    places: list[tuple[int, int]] = []
    times_us: list[float] = []
    nbytes: list[int] = []
    needs: list[int] = []
    deadlines: list[int] = []
    readers: list[int] = []
    sources: list[int] = []
    for layer in workspace.chunk(chunk):
        template, own = workspace.template(layer, choice[layer]), workspace.problem.layers[layer].own_window
        shift = len(places)
        places += [(layer, unit) for unit in template.units]
        times_us += template.times_us
        nbytes += template.nbytes
        needs += [own + need for need in template.needs]
        deadlines += [own + deadline for deadline in template.deadlines]
        readers += [mask << shift for mask in template.readers]
        sources += [mask << shift for mask in template.sources]
    return Jobs(
        places=tuple(places),
        times_us=tuple(times_us),
        nbytes=tuple(nbytes),
        needs=tuple(needs),
        deadlines=tuple(deadlines),
        readers=tuple(readers),
        sources=tuple(sources),
    )


def reader_order(reads: Sequence[int], work: int) -> list[int]:
    """Replayed units, each behind all those that read it."""
    left = [unit for unit in reversed(range(len(reads))) if work >> unit & 1]
    order: list[int] = []
    while left:
        unit = next(unit for unit in left if not any(reads[other] >> unit & 1 for other in left if other != unit))
        left.remove(unit)
        order.append(unit)
    return order


def price(workspace: Workspace, choice: Choice, effort: Effort, *, once: bool = False) -> StageSolution | None:
    """The best assignment found for a choice of policies; None where it does not fit into memory."""
    room_bytes = workspace.problem.budget_bytes - sum(workspace.memory(choice))
    if room_bytes < 0:
        return None
    fills: list[Fill] = []
    for chunk in range(len(workspace.problem.chunks)):
        jobs = jobs_of(workspace, choice, chunk)
        packed = pack_chunk(workspace, jobs, chunk, room_bytes, effort, once=once)
        for (layer, unit), window in zip(jobs.places, packed.windows, strict=True):
            if window != ON_DEMAND:
                fills.append(Fill(layer=layer, unit=unit, window=window))
    return assemble(workspace, choice, fills)


def assemble(workspace: Workspace, choice: Choice, fills: Sequence[Fill]) -> StageSolution:
    """The price of decisions."""
    problem = workspace.problem
    kept_bytes, working_bytes = workspace.memory(choice)
    room_us, held = list(workspace.lengths), [0] * (len(problem.windows) + 1)
    total_us = sum(float(workspace.table(layer).recompute_us[policy]) for layer, policy in enumerate(choice))
    for fill in fills:
        table, layer = workspace.table(fill.layer), problem.layers[fill.layer]
        room_us[fill.window] -= float(table.unit_us[fill.unit])
        for window in range(fill.window, layer.deadlines[fill.unit]):
            held[window] += int(table.unit_bytes[choice[fill.layer], fill.unit])
    hidden_us = sum(
        window.length_us - max(0.0, left_us) for window, left_us in zip(problem.windows, room_us, strict=True)
    )
    return StageSolution(
        dropped=tuple(workspace.table(layer).dropped(policy) for layer, policy in enumerate(choice)),
        fills=tuple(fills),
        exposed_us=max(0.0, total_us - hidden_us),
        hidden_us=min(total_us, hidden_us),
        kept_bytes=kept_bytes,
        prefetched_bytes=max(held),
        working_set_bytes=working_bytes,
    )


def pack_chunk(
    workspace: Workspace, jobs: Jobs, chunk: int, room_bytes: int, effort: Effort, *, once: bool = False
) -> Packed:
    """Several ways to fill windows; the others only where the first leaves something to gain, and not with `once`."""
    first, stop = workspace.span(chunk)
    lengths = workspace.lengths
    bound_us = fractional_exposed_us(jobs, lengths, first, stop)
    best = pack(jobs, lengths, first, stop, room_bytes, effort)
    if not once and best.exposed_us > bound_us + 1e-6:
        for thrifty in (False, True):
            other = pack(jobs, lengths, first, stop, room_bytes, effort, eager=True, thrifty=thrifty)
            best = min(best, other, key=lambda packed: packed.exposed_us)
    return best
