"""A profile of the whole model from what one stage and both ends cost here.

The layers' costs come from the stage that the arms run; those of embedding and head from a model of one layer with both
ends, at the same shapes. Alpha and bandwidth of the links are those stated.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron.overlap.measuring.assemble import assemble
from megatron.overlap.measuring.clocks import Clock
from megatron.overlap.measuring.finish import record_of
from megatron.overlap.measuring.records import RankRecord
from megatron.overlap.measuring.session import MeasuringSession
from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.data.tokenizers import build_tokenizer, padded_vocab_size
from megatron.pretrain.logs.model_shape import shape_of
from megatron.pretrain.model import build_transformer_config
from megatron.pretrain.training.profile_facts import facts_of_profile
from overlap_recompute.plan.profile import LinkFit, Profile
from overlap_recompute.plan.profile_facts import ProfileFacts
from overlap_recompute.plan.split import Split, layer_count
from tools.stage_bench_lib.collectives import EmulatedCollectives
from tools.stage_bench_lib.link import BYTES_PER_US_OF_A_GBYTE_PER_S, Rate
from tools.stage_bench_lib.stage import Stage

WARM_UP_STEPS = 2
BOUNDARY_MICROBATCHES = 1
"""In flight while costs are measured: they do not depend on it, and memory does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a profile says besides measurements."""

    whole: PretrainConfig
    """Of the model with all its layers and stages."""
    of_profile: ProfileFacts
    collectives: Rate
    messages: Rate


def facts_of(
    whole: PretrainConfig, words: Sequence[str], rates: tuple[Rate, Rate], note: str, device: torch.device
) -> Facts:
    """Facts of the whole model; needs no process group.

    Args:
        whole: options of the whole model.
        words: the command line.
        rates: of collectives and of messages between stages.
        note: what a reader of the profile must know.
        device: where it is measured.
    """
    learned = whole.model.position_embedding_type == "learned_absolute"
    shape = shape_of(
        build_transformer_config(whole),
        padded_vocab_size=padded_vocab_size(whole, build_tokenizer(whole)),
        sequence_length=whole.model.seq_length,
        max_position_embeddings=whole.max_position_embeddings if learned else 0,
        tied_embeddings=not whole.model.untie_embeddings_and_output_weights,
    )
    found = facts_of_profile(whole, shape, (), device)
    return Facts(
        whole=whole,
        of_profile=dataclasses.replace(found, command=" ".join(words), note=note),
        collectives=rates[0],
        messages=rates[1],
    )


def links_of(facts: Facts) -> tuple[LinkFit, ...]:
    """As a profile has them: over the bytes of the whole tensor, where a ring moves a part of it, or almost twice."""
    ranks = facts.of_profile.layout.tensor_parallel
    share = (ranks - 1) / ranks
    fits = []
    for name, factor in (("all_reduce", 2 * share), ("all_gather", share), ("reduce_scatter", share)):
        if ranks > 1:
            fits.append(_fit(name, facts.collectives, factor, facts.of_profile.payload_bytes))
    if facts.of_profile.layout.pipeline_parallel > 1:
        fits.append(_fit("send", facts.messages, 1.0, facts.of_profile.boundary_bytes))
    return tuple(fits)


def _fit(name: str, rate: Rate, factor: float, nbytes: int) -> LinkFit:
    beta = factor / (rate.gbyte_per_s * BYTES_PER_US_OF_A_GBYTE_PER_S)
    return LinkFit(
        name=name, alpha_us=rate.alpha_us, beta_us_per_byte=beta, points=((nbytes, rate.alpha_us + beta * nbytes),)
    )


def measure_costs(
    stage: Stage, collectives: EmulatedCollectives, clock: Clock, facts: Facts, *, iterations: int, base_bytes: int
) -> RankRecord:
    """What units, windows and passes of a stage cost; nothing else may be attached to it.

    Args:
        stage: to measure.
        collectives: of its link.
        clock: of its device.
        facts: of the whole model.
        iterations: counted steps.
        base_bytes: memory before the model existed.
    """
    session = MeasuringSession([stage.model], stage.device)
    step = session.forward_step(stage.forward_step)
    try:
        for number in range(WARM_UP_STEPS + iterations):
            with session.iteration(number >= WARM_UP_STEPS), session.step():
                collectives.active = True
                try:
                    stage.step(step, clock, microbatches=BOUNDARY_MICROBATCHES)
                finally:
                    collectives.active = False
            session.sort()
    finally:
        session.close()
    return record_of(
        session, [stage.model], stage=stage.stage, stages=stage.stages, links=links_of(facts),
        base_bytes=base_bytes, device=stage.device,
    )  # fmt: skip


def profile_of(layers: RankRecord, ends: RankRecord, facts: Facts) -> Profile:
    """One profile: layers from one record, embedding and head from another."""
    joined = dataclasses.replace(
        layers,
        stage=0,
        embedding=ends.embedding,
        head=ends.head,
        word_parameters=ends.word_parameters,
        update_us=0.0,  # gradient reduction and optimizer are not run
    )
    profile = assemble([joined], facts.of_profile)
    return for_split(profile, facts.of_profile.layout.split)


def for_split(profile: Profile, split: Split) -> Profile:
    """The profile of a model of the same layers in another number; all layers are of the first kind."""
    layout = dataclasses.replace(profile.layout, split=split, pipeline_parallel=len(split))
    return dataclasses.replace(profile, layers=(0,) * layer_count(split), layout=layout)


def used_memory(device: torch.device) -> int:
    """Device memory that is taken besides torch's allocator; 0 on a CPU."""
    if device.type == "cpu":
        return 0
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return int(total_bytes - free_bytes - torch.cuda.memory_reserved(device))
