"""One profile from the records of all ranks."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

from megatron.overlap.measuring.records import EndRecord, KindRecord, RankRecord
from megatron.overlap.measuring.samples import median_us, merge_passes
from overlap_recompute.plan.counted import CountedEnd
from overlap_recompute.plan.profile import (
    PROFILE_VERSION,
    SEND,
    EndCost,
    LayerKind,
    LinkFit,
    Origin,
    Profile,
    UnitCost,
)
from overlap_recompute.plan.profile_facts import ProfileFacts
from overlap_recompute.plan.storages import StorageRow, kept_bytes_of


def assemble(records: Sequence[RankRecord], facts: ProfileFacts) -> Profile:
    """Medians over the ranks that measured the same thing, and what follows from the options.

    Args:
        records: of one tensor-parallel rank of every stage, and of every copy of the model.
        facts: of the run.
    """
    kinds = _kinds(records, facts)
    order = {kind.fingerprint: number for number, kind in enumerate(kinds)}
    fingerprints = {layer: kind.fingerprint for record in records for kind in record.kinds for layer in kind.layers}
    counted = facts.counted
    first = [record for record in records if record.stage == 0]
    return Profile(
        version=PROFILE_VERSION,
        origin=_origin(records, facts),
        model_fingerprint=facts.model_fingerprint,
        model=facts.model,
        layout=facts.layout,
        kinds=kinds,
        layers=tuple(order[fingerprints[layer]] for layer in sorted(fingerprints)),
        embedding=_end([record.embedding for record in records], None if counted is None else counted.embedding),
        head=_end([record.head for record in records], None if counted is None else counted.head),
        links=_links(records),
        boundary_bytes=facts.boundary_bytes,
        static=facts.static,
        base_bytes=max(record.base_bytes for record in records),
        communication_bytes=max(record.communication_bytes for record in records),
        tied_embeddings=facts.tied_embeddings,
        # The first stage ends its passes last: nothing of its update is a wait for another stage.
        update_us=median_us(record.update_us for record in first),
        update_communication_us=median_us(record.update_communication_us for record in first),
        flops_per_token=facts.flops_per_token,
        tied_parameters=first[0].word_parameters if facts.tied_embeddings else 0,
    )


def _origin(records: Sequence[RankRecord], facts: ProfileFacts) -> Origin:
    samples = min(kind.samples for record in records for kind in record.kinds)
    slowest = max(records, key=lambda record: record.iteration_us)
    marks_us = slowest.marks * slowest.mark_us
    note = (
        f"means of {samples} passes or more; an iteration took {slowest.iteration_us / 1e3:.1f} ms "
        f"(at most {slowest.passes_us / 1e3:.1f} in passes), of which {marks_us / 1e3:.2f} ms are {slowest.marks} marks"
    )
    return Origin(
        source="measured",
        hardware=", ".join(sorted({record.hardware for record in records})),
        software=facts.software,
        taken=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=facts.command,
        note="; ".join(text for text in (facts.note, note) if text),
    )


def _kinds(records: Sequence[RankRecord], facts: ProfileFacts) -> tuple[LayerKind, ...]:
    found: dict[str, list[KindRecord]] = {}
    for record in records:
        for kind in record.kinds:
            found.setdefault(kind.fingerprint, []).append(kind)
    return tuple(_kind(alike, facts) for alike in sorted(found.values(), key=lambda alike: min(alike[0].layers)))


def _kind(alike: Sequence[KindRecord], facts: ProfileFacts) -> LayerKind:
    first = alike[0]
    transient_bytes, backward_memory = gradients_bytes(first.storages, facts.boundary_bytes), None
    if facts.counted is not None:
        counted = facts.counted.kind_of(first.layers[0])
        transient_bytes, backward_memory = counted.transient_bytes, counted.backward_memory
    return LayerKind(
        fingerprint=first.fingerprint,
        description=first.description,
        units=tuple(_unit(column) for column in zip(*(kind.units for kind in alike), strict=True)),
        storages=first.storages,
        forward=merge_passes([kind.forward for kind in alike]),
        backward=merge_passes([kind.backward for kind in alike]),
        parameters=first.parameters,
        expert_parameters=first.expert_parameters,
        transient_bytes=transient_bytes,
        backward_memory=backward_memory,
    )


def _unit(column: Sequence[UnitCost]) -> UnitCost:
    return replace(
        column[0],
        forward_us=median_us(unit.forward_us for unit in column),
        spread_us=median_us(unit.spread_us for unit in column),
    )


def gradients_bytes(storages: Sequence[StorageRow], boundary_bytes: int) -> int:
    """About what gradients take at a time: those of the two largest outputs, of the block's and the layer's output.

    An estimate, for want of a counted model.
    """
    largest = sorted((row.nbytes for row in storages if row.held), reverse=True)
    return sum(largest[:2]) + 2 * boundary_bytes


def _end(found: Sequence[EndRecord | None], counted: CountedEnd | None) -> EndCost:
    ends = [end for end in found if end is not None]
    return EndCost(
        forward=merge_passes([end.forward for end in ends]),
        backward=merge_passes([end.backward for end in ends]),
        parameters=ends[0].parameters,
        kept_bytes=kept_bytes_of(ends[0].storages, frozenset()),
        transient_bytes=gradients_bytes(ends[0].storages, 0) if counted is None else counted.transient_bytes,
    )


def _links(records: Sequence[RankRecord]) -> tuple[LinkFit, ...]:
    """The slowest stage's; pipeline messages were measured between the first two stages only."""
    best: dict[str, LinkFit] = {}
    for record in records:
        for fit in record.links:
            if fit.name == SEND and record.stage != 0:
                continue
            known = best.get(fit.name)
            if known is None or fit.points[-1][1] > known.points[-1][1]:
                best[fit.name] = fit
    return tuple(best.values())
