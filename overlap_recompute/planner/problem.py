"""The stage problem: what one pipeline stage keeps, drops, and recomputes in which window, in the steady state.

    symbol     meaning                                                  where
    i, u       a layer of the stage, a unit of it                       StageProblem.layers, LayerKind.units
    w          a window of the microbatch's timeline, in order          StageProblem.windows
    t[u]       time of u's replay                                       UnitCost.forward_us
    l[w]       length of the window                                     Window.length_us
    D[i]       dropped units of the layer (decision)                    StageSolution.dropped
    a[i,u]     window of the replay, or on demand (decision)            StageSolution.fills
    f[i], d[i,u]   u may be replayed in windows f[i] <= w < d[i,u]      StageLayer.first_window, .deadlines
    n[c]       microbatches in flight of the chunk                      ChunkMemory.in_flight
    K(D)       bytes that a layer keeps                                 storages.kept_bytes_of
    S(D)       its working set while its backward pass runs             memory.layer_working_set_bytes
    r(u, D)    bytes that u's replay brings back                        storages.brought_back_bytes_of
    M          bytes for all of this                                    StageProblem.budget_bytes

    minimize    sum of t[u] that is on demand + sum over w of max(0, replays in w - l[w])         (exposed time)
    subject to  sum over i of n[c(i)] K(D[i]) + prefetched + working set <= M                      [Memory]
                f[i] <= a[i,u] < d[i,u]                                                            [Window before need]
                a[i,v] <= a[i,u] for dropped u that reads a dropped v                              [Precedence]
                a[i,v] < d[i,u] for all v that u's replay reads, also through other dropped units
                prefetched = max over w of sum of r(u, D[i]) with a[i,u] <= w < d[i,u]             [Prefetch]

"On demand" comes behind all windows of a[i,u] < d[i,u]: a unit in a window reads nothing that is replayed on demand,
and a unit on demand takes what it reads on demand along, and what that reads, so all of it is due when the unit is.
Chunks of a stage (virtual pipeline) have timelines of their own, one behind the other, and share the memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from overlap_recompute.plan.memory import layer_working_set_bytes
from overlap_recompute.plan.profile import LayerKind
from overlap_recompute.plan.storages import kept_bytes_of

ON_DEMAND = -1
"""In place of a window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A wait that may be filled."""

    name: str
    """As in a plan: F7.0, P, B7.1."""
    length_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLayer:
    """A layer of the stage."""

    layer: int
    """Index in the model."""
    chunk: int
    kind: int
    """Index into `StageProblem.kinds`."""
    first_window: int
    """First window of its chunk's timeline."""
    own_window: int
    """First window of its own backward pass, or where it would be."""
    deadlines: tuple[int, ...]
    """For each unit of its kind the first window that comes too late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkMemory:
    """What the memory expression needs to know of a chunk besides its layers."""

    in_flight: int
    freed_bytes: int
    """Kept for the head and freed before the last layer's backward pass begins."""
    waiting_bytes: int
    """Held all through the backward pass."""
    end_bytes: int
    """Of the embedding's backward pass, which runs when all else is freed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProblem:
    """See the head of this file."""

    stage: int
    kinds: tuple[LayerKind, ...]
    layers: tuple[StageLayer, ...]
    """Chunk after chunk, in forward order."""
    windows: tuple[Window, ...]
    """Chunk after chunk, in the order in which they open."""
    chunks: tuple[ChunkMemory, ...]
    floor_bytes: int
    """Least that counts as working set: logits and loss."""
    budget_bytes: int
    """For kept activations of layers, prefetched ones and working set; negative if other things need all there is."""
    window_kinds: tuple[str, ...]

    def content(self) -> tuple[object, ...]:
        """All that a solution depends on: stages with the same content have the same one."""
        layers = tuple((each.chunk, each.kind, each.first_window, each.deadlines) for each in self.layers)
        lengths = tuple(window.length_us for window in self.windows)
        return self.kinds, layers, lengths, self.chunks, self.floor_bytes, self.budget_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """A replay in a window."""

    layer: int
    """Index into `StageProblem.layers`."""
    unit: int
    """Index into the units of its kind."""
    window: int
    """Index into `StageProblem.windows`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSolution:
    """Decisions for a stage, with their price."""

    dropped: tuple[frozenset[str], ...]
    """Of each layer."""
    fills: tuple[Fill, ...]
    exposed_us: float
    """Per microbatch, through all chunks."""
    hidden_us: float
    kept_bytes: int
    """Of all microbatches in flight."""
    prefetched_bytes: int
    """At its peak."""
    working_set_bytes: int
    bound_us: float = 0.0
    """No solution of this problem exposes less."""

    @property
    def total_bytes(self) -> int:
        """What the budget must hold."""
        return self.kept_bytes + self.prefetched_bytes + self.working_set_bytes


def memory_of(problem: StageProblem, dropped: Sequence[frozenset[str]]) -> tuple[int, int]:
    """Bytes kept by all microbatches in flight, and working set, of a choice of dropped units."""
    kinds = [problem.kinds[each.kind] for each in problem.layers]
    pairs = list(zip(kinds, dropped, strict=True))
    return combine_memory(
        problem,
        [kept_bytes_of(kind.storages, units) for kind, units in pairs],
        [layer_working_set_bytes(kind, units) for kind, units in pairs],
    )


def combine_memory(problem: StageProblem, kept: Sequence[int], working: Sequence[int]) -> tuple[int, int]:
    """The same from bytes of each layer.

    Args:
        problem: whose chunks count.
        kept: of each layer, for one microbatch.
        working: working set of each layer.
    """
    kept_bytes, most_bytes = 0, problem.floor_bytes
    freed = [chunk.freed_bytes for chunk in problem.chunks]
    for index in range(len(problem.layers) - 1, -1, -1):
        number = problem.layers[index].chunk
        chunk = problem.chunks[number]
        kept_bytes += chunk.in_flight * kept[index]
        most_bytes = max(most_bytes, working[index] + chunk.waiting_bytes - freed[number])
        freed[number] += kept[index]
    for chunk, freed_bytes in zip(problem.chunks, freed, strict=True):
        most_bytes = max(most_bytes, chunk.end_bytes - freed_bytes + chunk.freed_bytes)
    return kept_bytes, most_bytes
