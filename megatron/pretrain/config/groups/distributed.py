"""Process groups."""

from dataclasses import dataclass
from typing import Literal

from megatron.pretrain.config.ranges import NonNegativeFloat, PositiveFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedOptions:
    """Process groups: how ranks talk, and how long they wait for each other."""

    distributed_backend: Literal["nccl", "gloo"] = "nccl"
    """nccl trains on GPUs, gloo on CPUs."""

    distributed_timeout_minutes: PositiveFloat = 10.0
    """Minutes before a collective that does not complete is an error."""

    liveness_timeout_s: PositiveFloat = 30.0
    """Seconds without a sign of life after which a rank counts as lost and all others stop. (Own flag.)"""

    gloo_thread_turns: Literal["short", "normal"] = "short"
    """With short turns gloo's threads take the core as soon as data arrives (Linux 6.12 and later); with normal ones
    they wait until what computes has had its turn. (Own flag.)"""

    emulate_link_gbps: PositiveFloat | None = None
    """Gbit/s each way of an emulated link between ranks: transfers take its time, on one machine. (Own flag.)"""

    emulate_link_latency_us: NonNegativeFloat = 0.0
    """Microseconds that each message needs on the emulated link, besides its bytes. (Own flag.)"""
