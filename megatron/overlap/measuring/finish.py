"""From the samples of a rank to its record."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from megatron.overlap.measuring.iterations import Samples, Steps
from megatron.overlap.measuring.memory import communication_bytes, hardware_of
from megatron.overlap.measuring.passes import BEFORE, BEHIND, Step
from megatron.overlap.measuring.probe import Found
from megatron.overlap.measuring.records import RECORD_VERSION, EndRecord, KindRecord, RankRecord
from megatron.overlap.measuring.samples import Cap, mean_us, means_of, median_us, typical_pass
from megatron.overlap.measuring.session import MeasuringSession, cost_of_a_mark_us
from megatron.overlap.measuring.structure import description_of, fingerprint_of, parameters_of
from overlap_recompute.plan.layer_units import LAYER_UNITS, kind_of
from overlap_recompute.plan.profile import LinkFit, Pass, UnitCost
from overlap_recompute.plan.storages import StorageRow


def record_of(
    session: MeasuringSession,
    chunks: Sequence[nn.Module],
    *,
    stage: int,
    stages: int,
    links: tuple[LinkFit, ...],
    base_bytes: int,
    device: torch.device,
) -> RankRecord:
    """What this rank has measured.

    Args:
        session: after its iterations.
        chunks: the model chunks of this rank.
        stage: pipeline rank.
        stages: pipeline-parallel size.
        links: what was measured of the links.
        base_bytes: memory before the model existed.
        device: where the model lives.
    """
    samples, hidden_us = session.samples, _in_flight(links)
    times = samples.times
    before, behind, words = _parameters_at_ends(chunks, session.model.layers)
    kept = session.probe.storages
    return RankRecord(
        version=RECORD_VERSION,
        stage=stage,
        kinds=_kinds(session, samples, hidden_us),
        embedding=_end(samples.before, before, kept.get(BEFORE, ()), hidden_us) if stage == 0 else None,
        word_parameters=words,
        head=_end(samples.behind, behind, kept.get(BEHIND, ()), hidden_us) if stage == stages - 1 else None,
        links=links,
        iteration_us=median_us(time.iteration_us for time in times),
        passes_us=median_us(time.passes_us for time in times),
        update_us=mean_us(time.update_us for time in times),
        update_communication_us=mean_us(time.update_communication_us for time in times),
        between_us=median_us(time.between_us for time in times),
        marks=int(median_us(time.marks for time in times)),
        mark_us=cost_of_a_mark_us(device),
        base_bytes=base_bytes,
        communication_bytes=communication_bytes(device, base_bytes),
        hardware=hardware_of(device),
    )


def _in_flight(links: Sequence[LinkFit]) -> Cap:
    """From launch to wait the communication was in flight, unless it was over: then as long as the fit says."""
    fits = {fit.name: fit for fit in links}

    def hidden_us(step: Step) -> float:
        fit = fits.get(step.name)
        if not step.was_over or fit is None:
            return step.hidden_us
        return min(step.hidden_us, fit.duration_us(step.nbytes))

    return hidden_us


def _kinds(session: MeasuringSession, samples: Samples, hidden_us: Cap) -> tuple[KindRecord, ...]:
    alike: dict[str, list[int]] = {}
    for layer, module in sorted(session.model.layers.items()):
        alike.setdefault(fingerprint_of(module), []).append(layer)
    return tuple(_kind(session, samples, fingerprint, layers, hidden_us) for fingerprint, layers in alike.items())


def _kind(
    session: MeasuringSession, samples: Samples, fingerprint: str, layers: Sequence[int], hidden_us: Cap
) -> KindRecord:
    module = session.model.layers[layers[0]]
    forward, count = typical_pass([steps for layer in layers for steps in samples.forward.get(layer, ())], hidden_us)
    backward, _ = typical_pass([steps for layer in layers for steps in samples.backward.get(layer, ())], hidden_us)
    dense, routed = parameters_of(module)
    return KindRecord(
        fingerprint=fingerprint,
        description=description_of(module),
        layers=tuple(layers),
        units=_units(session, samples, layers, forward),
        forward=forward,
        backward=backward,
        storages=session.probe.storages.get(layers[0], ()),
        samples=count,
        parameters=dense,
        expert_parameters=routed,
    )


def _units(session: MeasuringSession, samples: Samples, layers: Sequence[int], forward: Pass) -> tuple[UnitCost, ...]:
    times = means_of([sample for layer in layers for sample in samples.units.get(layer, ())])
    found: Mapping[str, Found] = session.probe.found.get(layers[0], {})
    refused = {kind_of(unit): why for (unit, layer), why in session.model.refused.items() if layer == layers[0]}
    names = [name for name in LAYER_UNITS if name in times or name in refused]
    reads = {name: tuple(other for other in LAYER_UNITS if other in seen.reads) for name, seen in found.items()}
    kept_us = {name: sum(step.duration_us for step in forward if step.name == name) for name in refused}
    return tuple(
        UnitCost(
            name=name,
            forward_us=times.get(name, (kept_us.get(name, 0.0), 0.0))[0],
            spread_us=times.get(name, (0.0, 0.0))[1],
            reads=reads.get(name, ()),
            is_random=name in found and found[name].is_random,
            refusal=None if name in times else refused[name],
        )
        for name in names
    )


def _end(
    samples: tuple[list[Steps], list[Steps]], parameters: int, storages: tuple[StorageRow, ...], hidden_us: Cap
) -> EndRecord:
    forward, _ = typical_pass(samples[0], hidden_us)
    backward, _ = typical_pass(samples[1], hidden_us)
    return EndRecord(forward=forward, backward=backward, parameters=parameters, storages=storages)


def _parameters_at_ends(chunks: Sequence[nn.Module], layers: Mapping[int, nn.Module]) -> tuple[int, int, int]:
    """Elements before the first layer (embedding, positions), behind the last one, and of the matrix of words.

    The head counts its matrix also where it is the embedding's: then it has none of its own.
    """
    inside = {id(parameter) for module in layers.values() for parameter in module.parameters()}
    outside = {
        path: parameter.numel()
        for chunk in chunks
        for path, parameter in chunk.named_parameters()
        if id(parameter) not in inside
    }
    before = {path: size for path, size in outside.items() if ".embedding." in f".{path}"}
    words = sum(size for path, size in before.items() if path.endswith("word_embeddings.weight"))
    behind = sum(outside.values()) - sum(before.values())
    has_matrix = any(path.endswith("output_layer.weight") for path in outside)
    return sum(before.values()), behind + (0 if has_matrix else words), words
