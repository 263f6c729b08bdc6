"""The memory expression: peak bytes of one rank, term by term, from a profile and a choice of dropped units.

    total = weights, gradients, optimizer              StaticRules times elements of the stage
          + kept                                       chunks: microbatches in flight x kept bytes of layers and ends
          + recomputed ahead                           the cap
          + working set                                the backward pass of the layer where it is worst
          + head                                       where loss and logits need more than that
          + communication, base, margin

Planner, simulator, command line and tests all take it from here.

NOTE [ where the peak is ]
Kept bytes are at their most when the last forward pass before a backward pass is done. Backward frees them from the
last layer to the first, so a layer's working set counts above what the layers behind it kept, and the head's own
tensors, which the first steps of backward free, make room for what layers bring back.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from overlap_recompute.plan.plan_file import MemoryTable
from overlap_recompute.plan.profile import LayerKind, Profile, StaticRules
from overlap_recompute.plan.split import Split, layers_of
from overlap_recompute.plan.storages import BackwardMemory, MemoryStep, StorageRow, kept_bytes_of

MARGIN_FRACTION = 0.03
"""Of all activation terms: blocks that an allocator rounds up, and gaps that it cannot fill. Weights, gradients and
optimizer state are allocated once, in large blocks, and need none."""

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticBytes:
    """What is there from the second iteration on, whatever runs."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.parameters_bytes + self.gradients_bytes + self.optimizer_bytes


def static_bytes(rules: StaticRules, parameters: int, expert_parameters: int = 0) -> StaticBytes:
    """Bytes of weights, gradient buffers and optimizer.

    The distributed optimizer shares its states and main parameters out over ranks, padded by up to one element in
    Megatron's buffers, and leaves weights and gradient buffers whole.

    Args:
        rules: bytes of an element.
        parameters: elements on this rank, without routed experts.
        expert_parameters: elements of routed experts on this rank.
    """
    elements = parameters + expert_parameters
    each_bytes = rules.main_parameter_bytes + rules.state_bytes
    shared = -(-parameters // rules.shards) + -(-expert_parameters // rules.expert_shards)
    return StaticBytes(
        parameters_bytes=elements * rules.parameter_bytes,
        gradients_bytes=elements * rules.gradient_bytes,
        optimizer_bytes=shared * each_bytes,
    )


def static_bytes_of_stage(profile: Profile, split: Split, stage: int) -> StaticBytes:
    """The same for a pipeline stage of a split.

    Tied embeddings: the head's matrix on another stage than the embedding's is a copy with gradient and optimizer state
    of its own; on the same stage it is the same matrix.
    """
    kinds = [profile.kind_of(layer) for layers in layers_of(split)[stage] for layer in layers]
    is_first, is_last = stage == 0, stage == len(split) - 1
    ends = (profile.embedding,) * is_first + (profile.head,) * is_last
    shared = profile.tied_parameters if is_first and is_last else 0
    return static_bytes(
        profile.static,
        sum(kind.parameters for kind in kinds) + sum(end.parameters for end in ends) - shared,
        sum(kind.expert_parameters for kind in kinds),
    )


def layer_kept_bytes(kind: LayerKind, dropped: Set[str]) -> int:
    """What a layer keeps for one microbatch."""
    return kept_bytes_of(kind.storages, dropped)


def layer_working_set_bytes(kind: LayerKind, dropped: Set[str], *, gradient_is_kept: bool = False) -> int:
    """Most that a layer's backward pass holds above what the layer kept.

    Units come back when a step of the backward pass needs them and go when the last such step is done; what was kept of
    units that no later step needs is gone as well, and what only replays read goes with the last of them. What lives
    besides in a step, gradients on their way, comes on top of what is held in that step (`BackwardMemory`); where only
    its maximum is known (`transient_bytes`), it counts in every step.

    Args:
        kind: the layer.
        dropped: its dropped units, all replayed on demand.
        gradient_is_kept: leave the gradient of its output out: somebody else counts it.
    """
    reads = {unit.name: unit.reads for unit in kind.units}
    memory = kind.backward_memory or _at_any_time(kind)
    last_use = {unit: index for index, step in enumerate(memory.steps) for unit in step.needs}
    room = {each.unit: each.nbytes for each in memory.replays}
    # A unit of which no step says that it needs it counts all the time, and what it reads.
    replayed = set(dropped) - _replayed_for([*last_use], reads, dropped)
    rows = [_row(row, dropped, last_use, replayed) for row in kind.storages if row.is_wanted(dropped)]
    peak_bytes = 0
    for index, step in enumerate(memory.steps):
        other_bytes = -step.freed_bytes - (step.gradient_bytes if gradient_is_kept else 0)
        now = _replayed_for(step.needs, reads, dropped) - replayed
        for unit in (each for each in reads if each in now):
            made_bytes = _made_bytes(rows, unit, held=True) + max(
                room.get(unit, 0), _made_bytes(rows, unit, held=False)
            )
            held_bytes = _above_kept_bytes(rows, index, replayed) + made_bytes
            peak_bytes = max(peak_bytes, step.start_bytes + held_bytes + other_bytes)
            replayed.add(unit)
        held_bytes = _above_kept_bytes(rows, index, replayed)
        peak_bytes = max(peak_bytes, step.peak_bytes + held_bytes + other_bytes)
    return peak_bytes


def _at_any_time(kind: LayerKind) -> BackwardMemory:
    """The steps of a layer of which only the maximum is known."""
    most_bytes = kind.transient_bytes
    return BackwardMemory(
        steps=tuple(
            MemoryStep(needs=needs, start_bytes=most_bytes, peak_bytes=most_bytes)
            for needs in [step.needs for step in kind.backward] or [()]
        )
    )


class _Row(NamedTuple):
    """A row that a choice of dropped units keeps or brings back."""

    nbytes: int
    maker: str | None
    held: bool
    is_kept: bool
    readers: set[str]
    """Dropped units whose replays read it."""
    until: int
    """Last step that reads it."""


def _row(row: StorageRow, dropped: Set[str], last_use: Mapping[str, int], always: Set[str]) -> _Row:
    readers = {unit for unit in row.replay_readers if unit in dropped}
    last = sys.maxsize if row.maker is None else last_use.get(row.maker, sys.maxsize)
    until = sys.maxsize if readers & always else last if row.held else -1
    return _Row(row.nbytes, row.maker, row.held, row.is_kept(dropped), readers, until)


def _above_kept_bytes(rows: Sequence[_Row], index: int, replayed: Set[str]) -> int:
    """Bytes in a step above those that were kept: more of what is back, less of what has gone."""
    above_bytes = 0
    for nbytes, maker, _, is_kept, readers, until in rows:
        if until >= index or not readers <= replayed:
            if maker in replayed:
                above_bytes += nbytes
        elif is_kept:
            above_bytes -= nbytes
    return above_bytes


def _made_bytes(rows: Sequence[_Row], unit: str, *, held: bool) -> int:
    """What a replay of a unit brings back for backward (held), or for other replays alone."""
    return sum(row.nbytes for row in rows if row.maker == unit and row.held == held)


def _replayed_for(needs: Sequence[str], reads: Mapping[str, Sequence[str]], dropped: Set[str]) -> set[str]:
    """The dropped units among `needs`, and the dropped ones that their replays read."""
    found: set[str] = set()
    waiting = [unit for unit in needs if unit in dropped]
    while waiting:
        unit = waiting.pop()
        if unit not in found:
            found.add(unit)
            waiting += [other for other in reads.get(unit, ()) if other in dropped]
    return found


def stage_memory(
    profile: Profile,
    split: Split,
    stage: int,
    dropped: Mapping[int, Set[str]],
    in_flight: Sequence[int],
    *,
    prefetch_cap_bytes: int = 0,
    margin_fraction: float = MARGIN_FRACTION,
) -> MemoryTable:
    """Peak memory of a rank of one pipeline stage.

    Args:
        profile: sizes.
        split: layers of all stages and chunks.
        stage: which one.
        dropped: by layer of the model, its dropped units; a layer that is missing drops nothing.
        in_flight: for each chunk of the stage the most microbatches between forward and backward
            (`overlap_recompute.schedules.in_flight_microbatches(row).peak_by_chunk`).
        prefetch_cap_bytes: most that is recomputed ahead of need.
        margin_fraction: of the activation terms, for the allocator.
    """
    chunks = layers_of(split)[stage]
    is_last = stage == len(split) - 1
    static = static_bytes_of_stage(profile, split, stage)
    kept = kept_bytes_by_chunk(profile, split, stage, dropped)
    kept_bytes = sum(count * nbytes for count, nbytes in zip(in_flight, kept, strict=True))
    working_bytes = max(_chunk_working_set_bytes(profile, split, stage, chunk, dropped) for chunk in range(len(chunks)))
    head_bytes = max(0, profile.head.transient_bytes - working_bytes) if is_last else 0
    activations = kept_bytes + prefetch_cap_bytes + working_bytes + head_bytes
    return MemoryTable(
        parameters_bytes=static.parameters_bytes,
        gradients_bytes=static.gradients_bytes,
        optimizer_bytes=static.optimizer_bytes,
        kept_bytes=kept_bytes,
        prefetched_bytes=prefetch_cap_bytes,
        working_set_bytes=working_bytes,
        head_bytes=head_bytes,
        communication_bytes=profile.communication_bytes + _transfer_bytes(profile, stage, len(split), len(chunks)),
        base_bytes=profile.base_bytes,
        margin_bytes=int(activations * margin_fraction),
    )


def kept_bytes_by_chunk(profile: Profile, split: Split, stage: int, dropped: Mapping[int, Set[str]]) -> tuple[int, ...]:
    """What each chunk of a stage keeps for one microbatch, embedding and head included; arguments as `stage_memory`."""
    chunks = layers_of(split)[stage]
    kept = []
    for layers in chunks:
        likes = Counter(_like(profile, layer, dropped) for layer in layers)
        kept.append(sum(count * layer_kept_bytes(profile.kinds[kind], units) for (kind, units), count in likes.items()))
    kept[0] += profile.embedding.kept_bytes if stage == 0 else 0
    kept[-1] += profile.head.kept_bytes if stage == len(split) - 1 else 0
    return tuple(kept)


def _like(profile: Profile, layer: int, dropped: Mapping[int, Set[str]]) -> tuple[int, frozenset[str]]:
    """Kind and dropped units of a layer: what its memory depends on."""
    return profile.layers[layer], frozenset(dropped.get(layer, NOTHING))


def _chunk_working_set_bytes(
    profile: Profile, split: Split, stage: int, chunk: int, dropped: Mapping[int, Set[str]]
) -> int:
    """Most that one backward pass through a chunk holds above all that was kept for it."""
    is_first, is_last = (stage, chunk) == (0, 0), (stage, chunk) == (len(split) - 1, len(split[0]) - 1)
    freed_bytes = profile.head.kept_bytes if is_last else 0
    # With one matrix for both ends, autograd holds the head's part of its gradient until the embedding's is there.
    waiting_bytes = profile.tied_parameters * profile.static.parameter_bytes if is_first and len(split) == 1 else 0
    most_bytes = 0
    layers = layers_of(split)[stage][chunk]
    kept: dict[tuple[int, frozenset[str], bool], int] = {}
    for layer in reversed(layers):
        number, units = _like(profile, layer, dropped)
        kind = profile.kinds[number]
        # The gradient that another stage has sent lives through the whole pass: it counts as a transfer, and for the
        # layer that it enters not a second time.
        is_sent = layer == layers[-1] and not is_last
        if (number, units, is_sent) not in kept:  # else one behind it was the same, and less had been freed by then
            working_bytes = layer_working_set_bytes(kind, units, gradient_is_kept=is_sent)
            most_bytes = max(most_bytes, working_bytes + waiting_bytes - freed_bytes)
            kept[number, units, is_sent] = layer_kept_bytes(kind, units)
        freed_bytes += kept[number, units, is_sent]
    if is_first:
        most_bytes = max(most_bytes, profile.embedding.transient_bytes + waiting_bytes - freed_bytes)
    return most_bytes


def _transfer_bytes(profile: Profile, stage: int, stages: int, chunks: int) -> int:
    """Most tensors between stages, in a backward pass, that nobody counts as kept.

    To and from the stage behind: an output on its way out, and the gradient that came in, which the pass holds to its
    end. To and from the one before: a gradient on its way out, and the next input, for which a receive is posted. One
    more receive, for the gradient after that, is posted where no forward pass of this stage lies in between: when
    forward passes end, on the first stage; with interleaving between the last stage's passes through two chunks.
    """
    if stages == 1:
        return 0
    behind = stage < stages - 1 or chunks > 1
    before = stage > 0 or chunks > 1
    is_early = stage == (0 if chunks == 1 else stages - 1)
    return profile.boundary_bytes * (2 * (behind + before) + is_early)
