"""What tokens cost: joules and currency for a billion of them, from the stated power and price of a device.

A device draws its full power while it computes (passes and recompute, hidden or not) and a stated share of it while it
waits. Overlap turns waiting into computing: the iteration gets shorter and its power higher, so energy falls less than
time. Hosts, switches and cooling are not in it.
"""

from dataclasses import dataclass

from overlap_recompute.simulator.timeline import SimulationResult

WAITING_SHARE = 0.45
"""Of full power, while a device waits for communication with its clocks up. An assumption: idle A100 and H100 boards
draw 10 to 15 % (data sheets, nvidia-smi), spinning NCCL kernels well above that."""
TOKENS = 1e9
_S_PER_HOUR, _J_PER_KWH = 3600.0, 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a device draws and costs."""

    power_w: float
    """Of one device under load."""
    usd_per_device_hour: float
    """Price of the time of one device; 0: unknown."""
    waiting_share: float = WAITING_SHARE
    """Of `power_w`, while it waits; 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCost:
    """For a billion trained tokens, all devices together."""

    joules: float
    kilowatt_hours: float
    usd: float
    device_hours: float
    mean_power_w: float
    """Of one device."""


def token_cost(result: SimulationResult, devices: int, prices: Prices) -> TokenCost:
    """Energy and money for a billion tokens.

    Args:
        result: a simulated iteration.
        devices: of the whole job.
        prices: of one device.
    """
    waits_us = sum(stage.wait_us for stage in result.stages) / len(result.stages)
    waiting = waits_us / result.iteration_us
    mean_power_w = prices.power_w * (1 - waiting * (1 - prices.waiting_share))
    device_s = TOKENS / result.tokens_per_s * devices
    joules = device_s * mean_power_w
    device_hours = device_s / _S_PER_HOUR
    return TokenCost(
        joules=joules,
        kilowatt_hours=joules / _J_PER_KWH,
        usd=device_hours * prices.usd_per_device_hour,
        device_hours=device_hours,
        mean_power_w=mean_power_w,
    )
