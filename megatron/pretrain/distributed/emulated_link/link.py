"""How long transfers take on a link of given bandwidth and latency, and how they queue. Standard library only.

# NOTE [ What is emulated ]
# 1. Every rank has one full-duplex link of its own to a network that is never the bottleneck. Transfers in one
#    direction queue behind one another; the two directions do not disturb each other.
# 2. A transfer of B bytes holds its direction for B / bandwidth and is complete `messages` latencies later
#    (alpha-beta model). Latencies of transfers in a row overlap.
# 3. Its time starts when the real transfer, over loopback, is complete: only then have all ranks arrived. So a rank
#    that comes late delays the others as on a real network, and a result is never announced before it is there. The
#    time over loopback is extra; docs/linklab.md has figures.
# 4. A direction is followed on this rank only: that a peer's link is still busy with another rank's traffic is not
#    seen. With two ranks nothing is lost by that.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from overlap_recompute.plan.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """The share of one rank in one operation."""

    sent_bytes: int | None
    """What leaves this rank; None: the outgoing direction is not used."""

    received_bytes: int | None
    """What comes in; None: the incoming direction is not used."""

    messages: int
    """Messages that follow one another: each costs the latency once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedTraffic:
    """What an emulated link has carried so far."""

    transfers: int
    """Operations."""

    sent_bytes: int
    """Out of this rank."""

    received_bytes: int
    """Into this rank."""

    busy_s: float
    """Time during which the busier direction carried bytes, latencies not counted."""

    def describe(self) -> str:
        """One line, labelled."""
        return (
            f"emulated link: {self.transfers} transfers, {self.sent_bytes / 1e6:.1f} MB out and "
            f"{self.received_bytes / 1e6:.1f} MB in, busy for {self.busy_s:.3g} emulated s"
        )


class _Direction:
    """One direction of the link."""

    def __init__(self) -> None:
        self.free_at_s, self.carried_bytes, self.busy_s = -math.inf, 0, 0.0


class EmulatedLink:
    """The link of this rank. Safe to use from several threads.

    Args:
        gbps: bandwidth of each direction, in Gbit/s of payload.
        latency_us: one-way latency of a message, in microseconds.
        clock_s: the time, in seconds.

    Raises:
        ConfigError: a bandwidth that is not positive, or a negative latency.
    """

    def __init__(self, gbps: float, latency_us: float = 0.0, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        if not (math.isfinite(gbps) and gbps > 0 and math.isfinite(latency_us) and latency_us >= 0):
            raise ConfigError(
                f"an emulated link of {gbps:g} Gbit/s and {latency_us:g} us",
                "a bandwidth of more than 0 and a latency of at least 0",
                "correct --emulate-link-gbps or --emulate-link-latency-us",
            )
        self.gbps, self.latency_us, self.clock_s = gbps, latency_us, clock_s
        self._outgoing, self._incoming = _Direction(), _Direction()
        self._transfers = 0
        self._lock = threading.Lock()

    def describe(self) -> str:
        """What it is, labelled."""
        return f"emulated link of {self.gbps:g} Gbit/s each way and {self.latency_us:g} us"

    def duration_s(self, transfer: Transfer) -> float:
        """How long a transfer takes on an idle link."""
        longest = max(transfer.sent_bytes or 0, transfer.received_bytes or 0)
        return self._carry_s(longest) + transfer.messages * self.latency_us * 1e-6

    def carry(self, transfer: Transfer) -> float:
        """Queue a transfer for which all ranks are ready now.

        Returns:
            When it will be complete, on `clock_s`.
        """
        uses = ((self._outgoing, transfer.sent_bytes), (self._incoming, transfer.received_bytes))
        used = [(direction, count) for direction, count in uses if count is not None]
        with self._lock:
            # An operation with both directions advances in step: it starts when both are free.
            start_s = max([self.clock_s(), *(direction.free_at_s for direction, _ in used)])
            for direction, count in used:
                direction.free_at_s = start_s + self._carry_s(count)
                direction.carried_bytes += count
                direction.busy_s += self._carry_s(count)
            self._transfers += 1
        return start_s + self.duration_s(transfer)

    def traffic(self) -> EmulatedTraffic:
        """What has been queued so far."""
        with self._lock:
            return EmulatedTraffic(
                transfers=self._transfers,
                sent_bytes=self._outgoing.carried_bytes,
                received_bytes=self._incoming.carried_bytes,
                busy_s=max(self._outgoing.busy_s, self._incoming.busy_s),
            )

    def _carry_s(self, count_bytes: int) -> float:
        return count_bytes * 8e-9 / self.gbps
