"""What a lab is made of: hosts, each with one full-duplex link to a switch, and the ranks on them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from overlap_recompute.plan.errors import UserError

BITS_PER_UNIT = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
MIN_RATE_BITS_PER_S, MAX_RATE_BITS_PER_S = 64 * 10**3, 10 * 10**9
MAX_HOSTS = 64
SUBNET, PREFIX_BITS = "10.77.0.0", 16
"""Of all hosts."""
RATE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(kbit|mbit|gbit)", re.ASCII)
COSTLY_RATE_BITS_PER_S = 10**9
"""Above, shaping itself takes so much processor time that it disturbs what is measured."""


class LabError(UserError):
    """A lab that cannot be brought up or used.

    Args:
        status: exit status of the tool.
    """

    def __init__(self, found: str, expected: str, next_step: str, *, status: int = 125) -> None:
        super().__init__(found, expected, next_step)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The shape of one host's link, the same in both directions."""

    rate_bits_per_s: int
    """Bytes on the wire, headers included, do not pass faster than this."""

    burst_bytes: int
    """What may pass at once after a pause; at least one packet of 64 KiB."""

    queue_ms: int
    """How much traffic, in time, the link queues before it drops packets."""

    @property
    def rate_mbit_per_s(self) -> float:
        """The rate in Mbit/s."""
        return self.rate_bits_per_s / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """Hosts and ranks of one lab."""

    links: tuple[Link, ...]
    """One a host."""

    ranks_per_host: int = 1
    """Consecutive ranks share a host."""

    cores: tuple[int, ...] = ()
    """The core of each rank, in order of rank; empty: the kernel's choice."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.links) * self.ranks_per_host

    def address(self, host: int) -> str:
        """The address of a host, known inside the lab only."""
        return f"10.77.{host // 200}.{host % 200 + 1}"


def parse_rate(text: str) -> int:
    """Bits per second of "400mbit", "1.5gbit" or "64kbit".

    Raises:
        LabError: not a rate, or outside of what can be shaped.
    """
    match = RATE.fullmatch(text.strip().lower())
    bits_per_s = round(float(match[1]) * BITS_PER_UNIT[match[2]]) if match else 0
    if not MIN_RATE_BITS_PER_S <= bits_per_s <= MAX_RATE_BITS_PER_S:
        raise LabError(
            f"--rate {text!r}",
            "a number with kbit, mbit or gbit, from 64kbit to 10gbit",
            "write for example --rate 400mbit, or one rate a host: --rate 400mbit,100mbit",
            status=2,
        )
    return bits_per_s


def parse_links(rates: str, *, hosts: int, burst_bytes: int, queue_ms: int) -> tuple[Link, ...]:
    """One link a host from one rate for all or a comma-separated rate for each.

    Raises:
        LabError: a rate that is none, or another number of rates than of hosts.
    """
    values = [parse_rate(rate) for rate in rates.split(",")]
    if len(values) not in (1, hosts):
        raise LabError(
            f"{len(values)} rates for {hosts} hosts", "one rate, or one for each host", "correct --rate", status=2
        )
    every = values * hosts if len(values) == 1 else values
    return tuple(Link(rate_bits_per_s=rate, burst_bytes=burst_bytes, queue_ms=queue_ms) for rate in every)


def choose_cores(wanted: int, available: Sequence[int]) -> tuple[int, ...]:
    """One core for each of `wanted` ranks, or none at all when there are too few to give each its own."""
    return tuple(sorted(available)[:wanted]) if len(available) >= wanted else ()
