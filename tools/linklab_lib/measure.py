"""What a lab's links achieve: TCP throughput one way, the other way and both ways at once, and the round trip."""

import contextlib
import select
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from linklab_lib.links import Lab, LabError
from linklab_lib.network import Network, inside

ROUND_TRIPS = 30
CHUNK_BYTES = 1 << 18
SETTLE_S = {1: 0.3, 2: 0.8}
"""By number of ways, what passes before the clock starts: TCP's slow start takes ten round trips, and these are long
when acknowledgements wait behind the other way's data."""

SETTLE_BURSTS = 2
"""Nor does the clock start before the bursts that both ends of a link let through have passed."""

SEND_BUFFER_S = 0.1
MIN_SEND_BUFFER_BYTES = 1 << 16
"""A sender has this much on its way: enough to bridge a pause of this process, and not so much that with both ways at
once the acknowledgements wait for seconds behind the other way's data."""

POLL_MS = 50
CONNECT_TIMEOUT_S = 10.0
SO_SNDBUFFORCE = 32  # asm-generic/socket.h; Python has no name for it
ABORT_AT_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER: what a slow link still queues is dropped, not sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFigures:
    """What was measured between two hosts."""

    from_host: int
    """One end."""

    to_host: int
    """The other end."""

    set_mbit_per_s: float
    """The rate that was asked for: the lower of the two links'."""

    there_mbit_per_s: float
    """TCP payload from `from_host` to `to_host`."""

    back_mbit_per_s: float
    """TCP payload the other way."""

    both_ways_mbit_per_s: tuple[float, float]
    """The same two at once: a full-duplex link keeps them up."""

    round_trip_us: float
    """Median of small messages there and back on an idle link, without the wake-up of another process."""


def measure(
    lab: Lab, network: Network, *, duration_s: float, deadline_s: float, checkpoint: Callable[[], None]
) -> Iterator[PairFigures]:
    """Measure host 0 with each other host, one after the other.

    Args:
        lab: hosts and links.
        network: the namespaces, up.
        duration_s: length of one measurement of throughput; there are three a pair.
        deadline_s: when to give up, on the monotonic clock.
        checkpoint: called often; may raise.

    Raises:
        LabError: the hosts do not reach each other, or the deadline has passed.
    """

    def check() -> None:
        checkpoint()
        if time.monotonic() > deadline_s:
            raise LabError("a measurement that takes too long", "an end within --timeout-s", "raise --timeout-s")

    for host in range(1, len(lab.links)):
        with _connected(lab, network, host) as (near, far):
            pair = (lab.links[0], lab.links[host])
            round_trip_us = _round_trip_us(near, far, check)
        settle_bytes = SETTLE_BURSTS * sum(link.burst_bytes for link in pair)
        rates: list[tuple[float, ...]] = []
        for ways in ((0,), (1,), (0, 1)):
            with _connected(lab, network, host) as (near, far):
                directions = ((near, far), (far, near))
                settle_s = SETTLE_S[len(ways)]
                flows = [_Flow(*directions[way], settle_bytes=settle_bytes, settle_s=settle_s) for way in ways]
                rates.append(_throughput_mbit_per_s(flows, duration_s, check))
        yield PairFigures(
            from_host=0,
            to_host=host,
            set_mbit_per_s=min(link.rate_mbit_per_s for link in pair),
            there_mbit_per_s=rates[0][0],
            back_mbit_per_s=rates[1][0],
            both_ways_mbit_per_s=(rates[2][0], rates[2][1]),
            round_trip_us=round_trip_us,
        )


@contextlib.contextmanager
def _connected(lab: Lab, network: Network, host: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection between host 0 and another: its end on host 0, and its end there."""
    with contextlib.ExitStack() as stack:
        try:
            with inside(network.namespace(host)):
                server = stack.enter_context(socket.create_server((lab.address(host), 0)))
            with inside(network.namespace(0)):
                address = server.getsockname()
                near = stack.enter_context(socket.create_connection(address, timeout=CONNECT_TIMEOUT_S))
            server.settimeout(CONNECT_TIMEOUT_S)
            far = stack.enter_context(server.accept()[0])
        except OSError as error:
            raise LabError(
                f"host 0 and host {host} do not reach each other ({error})",
                "a TCP connection over the lab's links",
                "look for a firewall on bridges (net.bridge.bridge-nf-call-iptables), then report it",
            ) from error
        rate_bits_per_s = min(lab.links[0].rate_bits_per_s, lab.links[host].rate_bits_per_s)
        send_buffer_bytes = max(MIN_SEND_BUFFER_BYTES, round(rate_bits_per_s / 8 * SEND_BUFFER_S))
        for end in (near, far):
            # Not SO_SNDBUF: that stops at net.core.wmem_max, which is less than a fast link needs.
            end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, send_buffer_bytes)
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT_AT_CLOSE)
        yield near, far


def _round_trip_us(near: socket.socket, far: socket.socket, check: Callable[[], None]) -> float:
    samples_us = []
    for _ in range(ROUND_TRIPS):
        start_s = time.perf_counter()
        for sender, receiver in ((near, far), (far, near)):
            sender.send(b"!")
            while not select.select([receiver], [], [], POLL_MS / 1e3)[0]:
                check()
            receiver.recv(1)
        samples_us.append((time.perf_counter() - start_s) * 1e6)
    return statistics.median(samples_us)


class _Flow:
    """Bytes from one socket to another, as fast as they go."""

    def __init__(self, sender: socket.socket, receiver: socket.socket, *, settle_bytes: int, settle_s: float) -> None:
        self.sender, self.receiver = sender, receiver
        self._settle_bytes, self._settled_s = settle_bytes, time.monotonic() + settle_s
        self._chunk = memoryview(bytes(CHUNK_BYTES))
        self._buffer = bytearray(CHUNK_BYTES)
        self._total_bytes = self._counted_bytes = 0
        self._first_s = self._last_s = 0.0

    def send(self) -> None:
        """Give the link what it takes."""
        with contextlib.suppress(BlockingIOError):
            self.sender.send(self._chunk)

    def receive(self) -> None:
        """Take what has come, and count it once the link has settled."""
        try:
            count = self.receiver.recv_into(self._buffer)
        except BlockingIOError:
            return
        now_s = time.monotonic()
        self._total_bytes += count
        if self._first_s:
            self._counted_bytes += count
            self._last_s = now_s
        elif self._total_bytes >= self._settle_bytes and now_s >= self._settled_s:
            self._first_s = self._last_s = now_s

    def measured_s(self) -> float:
        """How long the clock has run."""
        return self._last_s - self._first_s

    def mbit_per_s(self) -> float:
        """Payload that arrived while the clock ran."""
        return self._counted_bytes * 8e-6 / self.measured_s()


def _throughput_mbit_per_s(flows: list[_Flow], duration_s: float, check: Callable[[], None]) -> tuple[float, ...]:
    waiter = select.poll()
    # With both ways at once a socket sends and receives.
    events = {end.fileno(): select.POLLIN for flow in flows for end in (flow.sender, flow.receiver)}
    for flow in flows:
        events[flow.sender.fileno()] |= select.POLLOUT
    for descriptor, mask in events.items():
        waiter.register(descriptor, mask)
    senders = {flow.sender.fileno(): flow for flow in flows}
    receivers = {flow.receiver.fileno(): flow for flow in flows}
    while min(flow.measured_s() for flow in flows) < duration_s:
        check()
        for descriptor, happened in waiter.poll(POLL_MS):
            if happened & select.POLLIN and descriptor in receivers:
                receivers[descriptor].receive()
            if happened & select.POLLOUT and descriptor in senders:
                senders[descriptor].send()
    return tuple(flow.mbit_per_s() for flow in flows)
