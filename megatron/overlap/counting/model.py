"""From the options of a run to the sizes of its model on one rank."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron.overlap.adapters.transformer_layer import TransformerLayerAdapter
from megatron.overlap.binder import Binder
from megatron.overlap.counting.balanced import BalancedRouting
from megatron.overlap.counting.miniature import Miniature, build_fake, fake_batch, miniature_of, still_generators
from megatron.overlap.counting.ranks import one_of_many
from megatron.overlap.counting.sites import HEAD, CountedSites
from megatron.overlap.measuring.structure import description_of, fingerprint_of, parameters_of
from megatron.overlap.replacements import Replacements
from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.config.model_fingerprint import model_fingerprint, model_summary
from megatron.pretrain.config.run_layout import layout_of
from megatron.pretrain.training.profile_facts import static_rules
from overlap_recompute.plan.counted import COUNTED_VERSION, CountedEnd, CountedKind, CountedModel, CountedUnit
from overlap_recompute.plan.kept_bytes import CPU
from overlap_recompute.plan.layer_units import LAYER_UNITS, kind_of
from overlap_recompute.plan.software import software_versions
from overlap_recompute.plan.storages import StorageRow
from overlap_recompute.runtime.census import OUTSIDE, Census, own_tensors
from overlap_recompute.runtime.live_bytes import LiveBytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    """What one forward and backward pass of a miniature showed."""

    census: Census
    sites: CountedSites
    refused: dict[tuple[str, int], str]
    rows: dict[int, tuple[StorageRow, ...]]
    """By part."""
    kept_bytes: int
    """Of all parts, when forward was over."""
    head_forward_peak_bytes: int
    """Most that lived while the head computed the loss."""


def count(config: PretrainConfig, padded_vocab_size: int) -> CountedModel:
    """Count a model; needs a process without process groups, and takes seconds whatever the size.

    Args:
        config: the options of the run, resolved for its number of ranks.
        padded_vocab_size: rows of the embedding, as the run pads them.
    """
    mini = miniature_of(config)
    with one_of_many(mini.config), FakeTensorMode(allow_non_fake_inputs=True), still_generators():
        model = build_fake(mini, padded_vocab_size)
        passes = _run(mini, model)
        return _model_of(config, mini, model, passes)


def _run(mini: Miniature, model: nn.Module) -> _Passes:
    replacements = Replacements()
    routing = BalancedRouting(mini.config, replacements)
    routing.prepare(model)
    with LiveBytes() as live, routing:
        census = Census(own_tensors([model]), live)
        sites = CountedSites(census, live, replacements)
        try:
            binder = Binder(sites, replacements, replays_hooks=True)
            TransformerLayerAdapter(binder).attach_all([model])
            with census.forward():
                live.start_span()
                loss = model(**fake_batch(mini.config)).float().mean()
                forward_peak_bytes = live.peak_bytes
            rows = {part: census.rows(part) for part in (OUTSIDE, HEAD, *sites.layers)}
            kept_bytes = live.kept_bytes
            sites.begin_backward()
            loss.backward()
            sites.end_backward()
        finally:
            replacements.restore()
    return _Passes(
        census=census,
        sites=sites,
        refused=binder.refused,
        rows=rows,
        kept_bytes=kept_bytes,
        head_forward_peak_bytes=forward_peak_bytes,
    )


def _model_of(config: PretrainConfig, mini: Miniature, model: nn.Module, passes: _Passes) -> CountedModel:
    kinds = tuple(_kind(layer, index, passes) for index, layer in sorted(passes.sites.layers.items()))
    tied = not config.model.untie_embeddings_and_output_weights
    return CountedModel(
        version=COUNTED_VERSION,
        device=CPU,
        model=model_summary(config),
        model_fingerprint=model_fingerprint(config),
        layout=layout_of(config),
        kinds=kinds,
        layers=tuple(mini.kinds.index(kind) for kind in config.moe_layer_pattern),
        embedding=CountedEnd(
            parameters=_elements(model, ".embedding."),
            kept_bytes=_kept(passes.rows[OUTSIDE]),
            transient_bytes=passes.sites.besides_bytes[OUTSIDE],
        ),
        head=CountedEnd(
            parameters=_elements(model, ".decoder.final_") + _elements(model, ".output_layer."),
            kept_bytes=_kept(passes.rows[HEAD]),
            transient_bytes=max(
                0, max(passes.head_forward_peak_bytes, passes.sites.live_peaks[HEAD]) - passes.kept_bytes
            ),
        ),
        boundary_bytes=passes.sites.boundary_bytes,
        static=static_rules(config),
        tied_parameters=_elements(model, ".output_layer.") if tied else 0,
        software=software_versions(),
    )


def _kind(layer: nn.Module, index: int, passes: _Passes) -> CountedKind:
    dense, routed = parameters_of(layer)
    reads = passes.census.reads.get(index, {})
    refused = {kind_of(unit): reason for (unit, where), reason in passes.refused.items() if where == index}
    names = sorted({*reads, *refused}, key=LAYER_UNITS.index)
    return CountedKind(
        fingerprint=fingerprint_of(layer),
        description=description_of(layer),
        units=tuple(
            CountedUnit(
                name=name,
                reads=tuple(sorted(reads.get(name, ()), key=LAYER_UNITS.index)),
                refusal=None if name in reads else refused[name],
            )
            for name in names
        ),
        storages=passes.rows[index],
        backward_needs=tuple((name,) for name in passes.census.needs.get(index, ())),
        parameters=dense,
        expert_parameters=routed,
        transient_bytes=passes.sites.besides_bytes[index],
        backward_memory=passes.census.backward_memory(index, passes.rows[index]),
    )


def _kept(rows: Sequence[StorageRow]) -> int:
    return sum(row.nbytes for row in rows if row.held)


def _elements(model: nn.Module, place: str) -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters() if place in f".{name}")
