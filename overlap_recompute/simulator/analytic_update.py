"""What an iteration spends outside of its passes: reduction of gradients, optimizer, gathering of weights.

NOTE [ update ]
1. Megatron's gradient buffer is fp32; with the distributed optimizer it is reduce-scattered, each rank updates its
   part, and bf16 weights are all-gathered. Without it the buffer is all-reduced and every rank updates everything.
2. With overlap (--overlap-grad-reduce, --overlap-param-gather) the reduction runs beside the last microbatch's backward
   pass and the gather beside the next iteration's first forward pass: only what is longer than those is counted.
   That it slows those passes down is not modelled.
3. The optimizer moves bytes: gradient read twice (norm, update), fp32 weight and Adam's two states read and written,
   bf16 weight written; and the gradient buffer is zeroed.
4. Stages update at the same time; the slowest counts.
"""

from dataclasses import dataclass

from overlap_recompute.simulator.analytic_compute import FP32_BYTES, memory_us
from overlap_recompute.simulator.analytic_links import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER, RankGroup, collective_us
from overlap_recompute.simulator.hardware import Hardware

ADAM_BYTES = 2 * FP32_BYTES + 6 * FP32_BYTES
"""Gradient read twice; weight and two states read and written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """What a stage holds and how long its passes over one microbatch are."""

    parameters: int
    """Elements on one rank, without those of routed experts."""
    expert_parameters: int
    """Elements of routed experts on one rank."""
    forward_us: float
    backward_us: float


def update_us(
    hardware: Hardware,
    stage: StageWork,
    group: RankGroup,
    expert_group: RankGroup,
    *,
    weight_bytes: int,
    distributed: bool,
    overlap: bool,
) -> float:
    """Time of one stage; see the NOTE above.

    Args:
        hardware: where.
        stage: its work.
        group: data-parallel ranks.
        expert_group: data-parallel ranks of routed experts.
        weight_bytes: of an element of a weight.
        distributed: whether the ranks share the optimizer's work and state.
        overlap: whether reduction and gathering run beside passes.
    """
    reduce_us, gather_us, moved = 0.0, 0.0, 0.0
    for elements, ranks in ((stage.parameters, group), (stage.expert_parameters, expert_group)):
        shards = ranks.ranks if distributed else 1
        collective = REDUCE_SCATTER if distributed else ALL_REDUCE
        reduce_us += collective_us(hardware, ranks, collective, elements * FP32_BYTES)
        gather_us += collective_us(hardware, ranks, ALL_GATHER, elements * weight_bytes) if distributed else 0.0
        moved += elements * FP32_BYTES + elements / shards * (ADAM_BYTES + weight_bytes)
    if overlap:
        reduce_us, gather_us = max(0.0, reduce_us - stage.backward_us), max(0.0, gather_us - stage.forward_us)
    return reduce_us + gather_us + memory_us(hardware, moved)
