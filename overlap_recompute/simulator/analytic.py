"""A profile computed for hardware that one does not have: the second source of the one cost model.

It has the shape of a measured profile and everybody downstream treats it as one. How each figure comes about:
kernels in `analytic_compute.py`, collectives in `analytic_links.py`, layers in `analytic_layers.py` and
`analytic_moe.py`, embedding and head in `analytic_ends.py`, the rest here. `docs/hardware.md` has the limits.
"""

import dataclasses
import hashlib
from dataclasses import dataclass

from overlap_recompute import __version__
from overlap_recompute.plan.kept_bytes import CUDA, FLASH, LayerShape
from overlap_recompute.plan.model_flops import flops_per_token
from overlap_recompute.plan.presets import ModelPreset
from overlap_recompute.plan.profile import (
    PROFILE_VERSION,
    EndCost,
    LayerKind,
    Layout,
    LinkFit,
    Origin,
    Pass,
    Profile,
    StaticRules,
)
from overlap_recompute.plan.split import layers_of
from overlap_recompute.simulator.analytic_ends import embedding_cost, head_cost
from overlap_recompute.simulator.analytic_layers import dense_layer
from overlap_recompute.simulator.analytic_links import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    REDUCE_SCATTER,
    RankGroup,
    collective_fit,
    collective_us,
    send_fit,
)
from overlap_recompute.simulator.analytic_moe import Mixture, mixture_layer
from overlap_recompute.simulator.analytic_steps import LayerSite
from overlap_recompute.simulator.analytic_update import StageWork, update_us
from overlap_recompute.simulator.hardware import GIB, MIB, Hardware

HALF_BYTES, FP32_BYTES, ADAM_STATE_BYTES = 2, 4, 8
NOTE = "computed, not measured; docs/hardware.md has the assumptions"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyticRun:
    """A run to compute a profile for: bf16 weights, fp32 gradients and optimizer (Adam), no dropout."""

    preset: ModelPreset
    hardware: Hardware
    layout: Layout
    core: str = FLASH
    """Core attention: flash, or unfused (products and softmax)."""
    distributed_optimizer: bool = True
    """Data-parallel ranks share the optimizer's state."""
    overlap_reduction: bool = True
    """Gradients are reduced and weights gathered beside passes."""
    taken: str = ""
    """Date, ISO 8601."""
    command: str = ""
    """That asked for it."""


def analytic_profile(run: AnalyticRun) -> Profile:
    """Compute the profile; assumes a layout that fits model and hardware (`profile_from_options` checks)."""
    layout, preset, hardware = run.layout, run.preset, run.hardware
    site = _site(run)
    vocabulary = preset.padded_vocabulary(layout.tensor_parallel)
    model = preset.shape(sequence=layout.sequence, tensor_parallel=layout.tensor_parallel)
    fingerprint = _fingerprint(run)
    kind = _layer_kind(run, site, fingerprint)
    tied = vocabulary // layout.tensor_parallel * preset.hidden if model.tied_embeddings else 0
    embedding = embedding_cost(site, vocabulary, model.max_position_embeddings)
    head = head_cost(site, vocabulary)
    return Profile(
        version=PROFILE_VERSION,
        origin=Origin(
            source="analytic",
            hardware=hardware.name,
            software=(("overlap-recompute", __version__),),
            taken=run.taken,
            command=run.command,
            note=NOTE,
        ),
        model_fingerprint=fingerprint,
        model=f"{preset.name}, bf16, {layout.sequence} tokens",
        layout=layout,
        kinds=(kind,),
        layers=(0,) * preset.layers,
        embedding=embedding,
        head=head,
        links=_links(run, site),
        boundary_bytes=site.width_bytes,
        static=_static_rules(run),
        base_bytes=int(hardware.context_gib * GIB),
        communication_bytes=_communication_bytes(run),
        tied_embeddings=model.tied_embeddings,
        update_us=_update_us(run, kind, embedding, head, tied),
        flops_per_token=flops_per_token(model),
        peak_tflops=hardware.peak_tflops,
        tied_parameters=tied,
    )


def layer_shape(run: AnalyticRun) -> LayerShape:
    """The layer on one rank; of a mixture, with one expert as its feed-forward block."""
    preset, layout = run.preset, run.layout
    return LayerShape(
        sequence=layout.sequence,
        micro_batch=layout.micro_batch,
        hidden=preset.hidden,
        ffn_hidden=preset.ffn_hidden,
        heads=preset.heads,
        groups=preset.groups,
        channels=preset.channels,
        element_bytes=HALF_BYTES,
        rms_norm=preset.llama_style,
        rotary=preset.llama_style,
        gated=preset.llama_style,
        biased=not preset.llama_style,
        fused_activation=True,
        core=run.core,
        tensor_parallel=layout.tensor_parallel,
        sequence_parallel=layout.sequence_parallel,
        backend=CUDA,
    )


def data_group(run: AnalyticRun) -> RankGroup:
    """Ranks that hold the same part of the model."""
    layout = run.layout
    return _group(run, layout.data_parallel, layout.tensor_parallel)


def expert_data_group(run: AnalyticRun) -> RankGroup:
    """Ranks that hold the same routed experts."""
    layout = run.layout
    experts = layout.expert_parallel
    return _group(run, layout.data_parallel // experts, layout.tensor_parallel * experts)


def is_one_node(run: AnalyticRun) -> bool:
    """Whether all ranks fit into one node, so that neighbouring pipeline stages are in the same one."""
    layout = run.layout
    ranks = layout.tensor_parallel * layout.data_parallel * layout.pipeline_parallel
    return ranks <= run.hardware.gpus_per_node


def _group(run: AnalyticRun, ranks: int, stride: int) -> RankGroup:
    """Megatron's order of ranks: tensor-parallel ones are neighbours, then expert- and data-parallel, then stages."""
    return RankGroup(ranks=ranks, stride=stride, gpus_per_node=run.hardware.gpus_per_node)


def _site(run: AnalyticRun) -> LayerSite:
    group = _group(run, run.layout.tensor_parallel, 1)
    return LayerSite(hardware=run.hardware, shape=layer_shape(run), tensor_group=group)


def _layer_kind(run: AnalyticRun, site: LayerSite, fingerprint: str) -> LayerKind:
    if not run.preset.experts:
        return dense_layer(site, fingerprint)
    return mixture_layer(site, _mixture(run), fingerprint)


def _mixture(run: AnalyticRun) -> Mixture:
    group = _group(run, run.layout.expert_parallel, run.layout.tensor_parallel)
    return Mixture(experts=run.preset.experts, per_token=run.preset.experts_per_token, group=group)


def _fingerprint(run: AnalyticRun) -> str:
    """Of model and layout within a stage; not of the hardware: plans may be compared across it."""
    layout = run.layout
    parts = (
        dataclasses.astuple(run.preset), run.core, layout.tensor_parallel, layout.context_parallel,
        layout.expert_parallel, layout.sequence_parallel, layout.micro_batch, layout.sequence,
    )  # fmt: skip
    return "analytic-" + hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _links(run: AnalyticRun, site: LayerSite) -> tuple[LinkFit, ...]:
    hardware, layout = run.hardware, run.layout
    fits = []
    if layout.tensor_parallel > 1:
        names = (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER)
        fits += [collective_fit(hardware, site.tensor_group, name) for name in names]
    if layout.expert_parallel > 1:
        fits.append(collective_fit(hardware, _mixture(run).group, ALL_TO_ALL))
    if layout.pipeline_parallel > 1:
        fits.append(send_fit(hardware, within_node=is_one_node(run)))
    return tuple(fits)


def _static_rules(run: AnalyticRun) -> StaticRules:
    sharded = run.distributed_optimizer
    return StaticRules(
        parameter_bytes=HALF_BYTES,
        gradient_bytes=FP32_BYTES,
        main_parameter_bytes=FP32_BYTES,
        state_bytes=ADAM_STATE_BYTES,
        shards=data_group(run).ranks if sharded else 1,
        expert_shards=expert_data_group(run).ranks if sharded else 1,
    )


def _communication_bytes(run: AnalyticRun) -> int:
    """A communicator for each group of more than one rank, and one of all ranks."""
    layout = run.layout
    sizes = (layout.tensor_parallel, layout.pipeline_parallel, layout.data_parallel, layout.expert_parallel)
    groups = sum(size > 1 for size in sizes)
    return int((groups + (groups > 0)) * run.hardware.communicator_mib * MIB)


def _update_us(run: AnalyticRun, kind: LayerKind, embedding: EndCost, head: EndCost, tied: int) -> float:
    """Of the slowest stage; with tied embeddings also the exchange of the matrix's gradient between first and last.

    Args:
        run: the run.
        kind: its layers.
        embedding: before the first one.
        head: behind the last one.
        tied: elements of the matrix that both ends share; 0: none.
    """
    split, layout = run.layout.split, run.layout
    times = []
    for stage, chunks in enumerate(layers_of(split)):
        layers = sum(map(len, chunks))
        is_first, is_last = stage == 0, stage == len(split) - 1
        shared = tied if is_first and is_last else 0
        ends = (embedding,) * is_first + (head,) * is_last
        work = StageWork(
            parameters=layers * kind.parameters + sum(end.parameters for end in ends) - shared,
            expert_parameters=layers * kind.expert_parameters,
            forward_us=layers * pass_us(kind.forward) + sum(pass_us(end.forward) for end in ends),
            backward_us=layers * pass_us(kind.backward) + sum(pass_us(end.backward) for end in ends),
        )
        stage_us = update_us(
            run.hardware, work, data_group(run), expert_data_group(run), weight_bytes=HALF_BYTES,
            distributed=run.distributed_optimizer, overlap=run.overlap_reduction,
        )  # fmt: skip
        times.append(stage_us)
    pair = _group(run, 2, layout.tensor_parallel * layout.data_parallel) if tied and len(split) > 1 else None
    exchange_us = collective_us(run.hardware, pair, ALL_REDUCE, tied * FP32_BYTES) if pair else 0.0
    return max(times) + exchange_us


def pass_us(steps: Pass) -> float:
    """Time of a pass, windows included."""
    return sum(step.duration_us for step in steps)
