"""Which policies the layers of a stage may take together: a dynamic program, as if replays could be split.

    state       after the layers 0 .. i of a chunk: (kept bytes, carry)
    carry       replay time that the windows of those layers' own backward passes leave, for windows before them

Backward runs from the last layer to the first, so the windows of layer i serve layers 0 .. i and the carry is served by
windows of later layers. Of two states the one with fewer bytes and no more carry is better, whatever follows: only the
Pareto front is kept. Ahead of the last layer's backward pass come the windows of the forward pass and the wait for the
gradient; what they leave is exposed.

Of a replay that is longer than the longest window the rest is exposed in any case; it is left out of the carry. Replays
cannot be split, and hidden ones still take memory ahead of need. Both hurt less where less is replayed, so a
share of all replay time, hidden or not (`price`), is added to the carry when states are compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from overlap_recompute.planner.policies import Floats, Ints
from overlap_recompute.planner.workspace import Choice, Workspace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Front:
    """Pareto-optimal choices for some layers."""

    bytes_kept: Ints
    """In rising order, all microbatches in flight."""
    exposed_us: Floats
    recompute_us: Floats
    choices: Ints
    """(states, layers): rows of the policy tables."""


def stage_front(workspace: Workspace, states: int, price: float) -> Front:
    """Choices for a whole stage, at most `states` of them.

    Args:
        workspace: problem and policies.
        states: how many are carried along.
        price: of a microsecond of replay, whether it is hidden or not.
    """
    problem = workspace.problem
    costs = workspace.loads
    result: Front | None = None
    for chunk in range(len(problem.chunks)):
        part = _chunk_front(workspace, chunk, costs, states, price)
        result = part if result is None else _join(result, part, states, price)
    assert result is not None
    return result


def _chunk_front(workspace: Workspace, chunk: int, costs: Sequence[Floats], states: int, price: float) -> Front:
    problem, layers = workspace.problem, workspace.chunk(chunk)
    in_flight = problem.chunks[chunk].in_flight
    kept, carry, total, rest = np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1), np.zeros(1)
    choices = np.zeros((1, 0), dtype=np.int64)
    for index in layers:
        layer, table = problem.layers[index], workspace.table(index)
        load = costs[layer.kind]
        after = np.broadcast_to(carry[:, None], (len(carry), len(table.masks)))
        for own in range(load.shape[1] - 1, -1, -1):
            after = _serve(after, _own_us(workspace, index, own, load.shape[1] - 1)) + load[:, own]
        sums = total[:, None] + table.recompute_us[None, :]
        rests = rest[:, None] + workspace.rests[layer.kind][None, :]
        more = kept[:, None] + in_flight * table.kept_bytes[None, :]
        best = thin(more.ravel(), (after + rests + price * sums).ravel(), states)
        parent, policy = np.divmod(best, len(table.masks))
        kept, carry, total = more.ravel()[best], after.ravel()[best], sums.ravel()[best]
        rest = rests.ravel()[best]
        choices = np.column_stack([choices[parent], policy])
    first, _ = workspace.span(chunk)
    before_us = sum(workspace.lengths[first : problem.layers[layers[-1]].own_window]) if layers else 0.0
    exposed = np.maximum(0.0, carry - before_us) + rest
    best = thin(kept, exposed + price * total, states)
    return Front(bytes_kept=kept[best], exposed_us=exposed[best], recompute_us=total[best], choices=choices[best])


def _own_us(workspace: Workspace, index: int, own: int, last: int) -> float:
    """Length of the windows between deadline class `own` and the next one of a layer."""
    layer, lengths = workspace.problem.layers[index], workspace.lengths
    if own < last:
        return lengths[layer.own_window + own]
    previous = index - 1
    same = previous >= 0 and workspace.problem.layers[previous].chunk == layer.chunk
    end = workspace.problem.layers[previous].own_window if same else workspace.span(layer.chunk)[1]
    return sum(lengths[layer.own_window + last : end])


def _serve(carry: Floats, window_us: float) -> Floats:
    return np.maximum(0.0, carry - window_us) if window_us else carry


def thin(nbytes: Ints, cost: Floats, states: int) -> Ints:
    """Indices of the Pareto front by rising bytes; of too many, the best of each of `states` ranges of bytes."""
    order = np.lexsort((cost, nbytes))
    costs = cost[order]
    lowest = np.minimum.accumulate(costs)
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = costs[1:] < lowest[:-1] - 1e-9
    order = order[fresh]
    if len(order) <= states:
        return order
    sizes = nbytes[order].astype(np.float64)
    bucket = ((sizes - sizes[0]) * (states - 1) / (sizes[-1] - sizes[0])).astype(np.int64)
    last = np.ones(len(order), dtype=bool)
    last[1:-1] = bucket[1:-1] != bucket[2:]
    return order[last]


def _join(left: Front, right: Front, states: int, price: float) -> Front:
    kept = (left.bytes_kept[:, None] + right.bytes_kept[None, :]).ravel()
    exposed = (left.exposed_us[:, None] + right.exposed_us[None, :]).ravel()
    total = (left.recompute_us[:, None] + right.recompute_us[None, :]).ravel()
    best = thin(kept, exposed + price * total, states)
    one, two = np.divmod(best, len(right.bytes_kept))
    return Front(
        bytes_kept=kept[best],
        exposed_us=exposed[best],
        recompute_us=total[best],
        choices=np.column_stack([left.choices[one], right.choices[two]]),
    )


def feasible(workspace: Workspace, found: Front, price: float) -> Iterator[tuple[float, Choice]]:
    """(exposed time if replays could be split, choice) that fit into memory, the cheapest first."""
    budget_bytes = workspace.problem.budget_bytes
    for index in np.lexsort((found.bytes_kept, found.exposed_us + price * found.recompute_us)):
        if found.bytes_kept[index] > budget_bytes:
            continue
        choice = tuple(int(policy) for policy in found.choices[index])
        if sum(workspace.memory(choice)) <= budget_bytes:
            yield float(found.exposed_us[index]), choice


def lower_bound_us(workspace: Workspace, states: int = 256) -> float:
    """No solution exposes less: replays can be split, nothing is held ahead of need, no working set beyond the least.

    Valid for all policies also where the workspace holds those of fast planners alone, which leave out none that keeps
    less and has less to replay before each deadline. Of too many states those of a range of bytes become one, with the
    fewest bytes and the least carry among them.
    """
    problem = workspace.problem
    kept, exposed = np.zeros(1, dtype=np.int64), np.zeros(1)
    for chunk in range(len(problem.chunks)):
        more, carry = _least_carry(workspace, chunk, states)
        kept, exposed = _merged((kept[:, None] + more).ravel(), (exposed[:, None] + carry).ravel(), states)
    fits = kept + problem.floor_bytes <= problem.budget_bytes
    return float(exposed[fits].min(initial=np.inf)) if fits.any() else 0.0


def _least_carry(workspace: Workspace, chunk: int, states: int) -> tuple[Ints, Floats]:
    """Bytes kept and least exposed time of a chunk."""
    problem, layers = workspace.problem, workspace.chunk(chunk)
    kept, carry = np.zeros(1, dtype=np.int64), np.zeros(1)
    for index in layers:
        layer, table = problem.layers[index], workspace.table(index)
        load = workspace.loads[layer.kind]
        after = np.broadcast_to(carry[:, None], (len(carry), len(table.masks)))
        for own in range(load.shape[1] - 1, -1, -1):
            after = _serve(after, _own_us(workspace, index, own, load.shape[1] - 1)) + load[:, own]
        # What no window can hide may be hidden here: so one number is left to compare.
        after = after + workspace.rests[layer.kind]
        more = kept[:, None] + problem.chunks[chunk].in_flight * table.kept_bytes
        kept, carry = _merged(more.ravel(), after.ravel(), states)
    first, _ = workspace.span(chunk)
    before_us = sum(workspace.lengths[first : problem.layers[layers[-1]].own_window]) if layers else 0.0
    return kept, np.maximum(0.0, carry - before_us)


def _merged(nbytes: Ints, cost: Floats, states: int) -> tuple[Ints, Floats]:
    """The Pareto front by rising bytes; of too many states each range of bytes becomes one no worse than any of it."""
    front = thin(nbytes, cost, len(nbytes))
    nbytes, cost = nbytes[front], cost[front]
    if len(front) <= states:
        return nbytes, cost
    edges = np.unique(np.searchsorted(nbytes, np.linspace(float(nbytes[0]), float(nbytes[-1]), states, endpoint=False)))
    return nbytes[edges], cost[np.append(edges[1:], len(nbytes)) - 1]


def evaluate(workspace: Workspace, choices: Ints) -> tuple[Ints, Floats, Floats]:
    """Memory, estimated exposed time and all replay time, of (C, layers) choices at once.

    The estimate lets replays be split, but what is longer than the longest window is exposed. What memory leaves bounds
    how much of them may be held ahead of need, also in the window of the replay: as much as fits if the units that hide
    most for their bytes come first; what is beyond is exposed.
    """
    problem, shape = workspace.problem, choices.shape
    kept, working = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    total = np.zeros(len(choices))
    units = max((len(table.names) for table in workspace.tables), default=0)
    times, brought = np.zeros((len(choices), units)), np.zeros((len(choices), units))
    parts = []
    for table in workspace.tables:
        work = table.work[:, None] >> np.arange(len(table.names)) & 1
        parts.append((work * np.minimum(table.unit_us, workspace.longest_us), work * table.unit_bytes))
    for index, layer in enumerate(problem.layers):
        table, policies = workspace.tables[layer.kind], choices[:, index]
        kept[:, index], working[:, index] = table.kept_bytes[policies], table.working_bytes[policies]
        total += table.recompute_us[policies]
        kind_us, kind_bytes = parts[layer.kind]
        times[:, : len(table.names)] += kind_us[policies]
        brought[:, : len(table.names)] += kind_bytes[policies]
    needed = _memory(workspace, kept, working)
    room = np.maximum(0.0, problem.budget_bytes - needed.astype(np.float64))
    limit_us = _held_us(times, brought, room)
    exposed = np.zeros(len(choices))
    for index, layer in enumerate(problem.layers):
        exposed += workspace.rests[layer.kind][choices[:, index]]
    for chunk in range(len(problem.chunks)):
        carry, layers = np.zeros(len(choices)), workspace.chunk(chunk)
        for index in layers:
            load, policies = workspace.loads[problem.layers[index].kind], choices[:, index]
            last = load.shape[1] - 1
            for own in range(last, -1, -1):
                window_us = _own_us(workspace, index, own, last)
                if window_us:
                    carry, over = np.minimum(carry, limit_us), carry
                    exposed += over - carry
                carry = _serve(carry, window_us) + load[policies, own]
        first, _ = workspace.span(chunk)
        before_us = sum(workspace.lengths[first : problem.layers[layers[-1]].own_window]) if layers else 0.0
        hidden = np.minimum(np.minimum(carry, limit_us), before_us)
        exposed += carry - hidden
    return needed, exposed, total


def _held_us(times: Floats, brought: Floats, room: Floats) -> Floats:
    """Most replay time that may be held in `room` (C) bytes; times and bytes (C, U) by unit of all layers together."""
    order = np.argsort(brought / np.maximum(times, 1e-9), axis=1, kind="stable")
    times, brought = np.take_along_axis(times, order, axis=1), np.take_along_axis(brought, order, axis=1)
    before = np.cumsum(brought, axis=1) - brought
    share = np.clip((room[:, None] - before) / np.maximum(brought, 1.0), 0.0, 1.0)
    return np.asarray((times * np.where(brought > 0, share, 1.0)).sum(axis=1))


def memory_of_choices(workspace: Workspace, choices: Ints) -> Ints:
    """Kept bytes and working set together, of (C, layers) choices at once."""
    tables = [workspace.table(index) for index in range(choices.shape[1])]
    kept = np.column_stack([table.kept_bytes[choices[:, index]] for index, table in enumerate(tables)])
    working = np.column_stack([table.working_bytes[choices[:, index]] for index, table in enumerate(tables)])
    return _memory(workspace, kept, working)


def _memory(workspace: Workspace, kept: Ints, working: Ints) -> Ints:
    """`combine_memory` for (C, layers) bytes at once."""
    problem = workspace.problem
    needed = np.zeros(len(kept), dtype=np.int64)
    most = np.full(len(kept), problem.floor_bytes, dtype=np.int64)
    for number, chunk in enumerate(problem.chunks):
        freed = np.full(len(kept), chunk.freed_bytes, dtype=np.int64)
        for index in reversed(workspace.chunk(number)):
            most = np.maximum(most, working[:, index] + chunk.waiting_bytes - freed)
            freed += kept[:, index]
            needed += chunk.in_flight * kept[:, index]
        most = np.maximum(most, chunk.end_bytes + chunk.freed_bytes - freed)
    return needed + most
