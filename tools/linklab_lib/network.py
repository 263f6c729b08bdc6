"""Bring up the namespaces, the switch and the shaped links of a lab, and take them down.

One namespace, the hub, holds a bridge; every host's namespace is joined to it by a veth pair. The host's end shapes
what it sends, the hub's end what it receives, so every host has a full-duplex link of its own rate:

    host 0 [lab0] --tbf-> ............ <-tbf-- [port0] hub [port1] --tbf-> ............ <-tbf-- [lab0] host 1

Everything lives inside these namespaces: the machine's own network is neither used nor changed. Hosts send with CUBIC,
whatever the machine is set to: BBR, for one, stops nearly all traffic for 0.2 s every 10 s to find the shortest round
trip, which a measurement would show as noise.
"""

import contextlib
import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from linklab_lib.links import PREFIX_BITS, SUBNET, Lab, LabError, Link
from linklab_lib.owner import NAMESPACES, Owner, is_inside, leftovers, namespaces_of, processes_inside

INTERFACE = "lab0"
"""Name of a host's interface, inside its namespace."""

CONGESTION_CONTROL = "cubic"
CONGESTION_CONTROLS = pathlib.Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
"""What this kernel has."""

TOOL_TIMEOUT_S = 20.0
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
CLONE_NEWNET = 0x40000000


def require_privileges(emulation_hint: str) -> None:
    """Check that this process may make namespaces, and has the tools for it.

    Raises:
        LabError: it names what is missing.
    """
    missing = [f"the program `{tool}`" for tool in ("ip", "tc") if shutil.which(tool, path=SEARCH_PATH) is None]
    if os.geteuid() != 0:
        missing.insert(0, f"root (the user id is {os.geteuid()})")
    if missing:
        raise LabError(
            f"no {' and no '.join(missing)}",
            "root, and `ip` and `tc` of iproute2: links are shaped by the kernel",
            f"run as root, install iproute2 (apt-get install iproute2), or do without: {emulation_hint}",
        )


class Network:
    """The namespaces of one lab.

    Args:
        owner: the process whose names they carry.
        lab: hosts and links.
        emulation_hint: what a user can do where this does not work.
    """

    def __init__(self, owner: Owner, lab: Lab, emulation_hint: str) -> None:
        self.owner, self.lab, self._hint = owner, lab, emulation_hint
        self._hub = f"{owner.prefix}-hub"

    def namespace(self, host: int) -> str:
        """Name of a host's namespace."""
        return f"{self.owner.prefix}-h{host}"

    def steps(self) -> Iterator[Sequence[str]]:
        """The commands that bring the lab up, in order."""
        hub = self._hub
        yield ("ip", "netns", "add", hub)
        yield ("ip", "-n", hub, "link", "add", "switch", "type", "bridge")
        yield ("ip", "-n", hub, "link", "set", "switch", "addrgenmode", "none", "up")
        for host, link in enumerate(self.lab.links):
            name, port = self.namespace(host), f"port{host}"
            yield ("ip", "netns", "add", name)
            yield ("ip", "-n", name, "link", "set", "lo", "up")
            yield (
                "ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", name,
            )  # fmt: skip
            yield ("ip", "-n", name, "addr", "add", f"{self.lab.address(host)}/{PREFIX_BITS}", "dev", INTERFACE)
            yield _shape(hub, port, link)
            yield _shape(name, INTERFACE, link)
            yield ("ip", "-n", hub, "link", "set", port, "master", "switch", "addrgenmode", "none", "up")
            yield ("ip", "-n", name, "link", "set", INTERFACE, "addrgenmode", "none", "up")
            if CONGESTION_CONTROL in CONGESTION_CONTROLS.read_text().split():
                # By route: only the machine's own namespace may set the default to it.
                yield (
                    "ip", "-n", name, "route", "replace", f"{SUBNET}/{PREFIX_BITS}", "dev", INTERFACE,
                    "proto", "kernel", "scope", "link", "src", self.lab.address(host), "congctl", CONGESTION_CONTROL,
                )  # fmt: skip

    def build(self, checkpoint: Callable[[], None]) -> None:
        """Bring the lab up. What was made stays on an error: call `remove` in any case.

        Args:
            checkpoint: called between the steps; may raise.

        Raises:
            LabError: the kernel or a tool refuses a step.
        """
        for step in self.steps():
            checkpoint()
            run_tool(step, self._hint)

    def remove(self) -> None:
        """End what runs inside the lab's namespaces and delete them. Does nothing the second time."""
        remove_namespaces(namespaces_of(self.owner))


def _shape(namespace: str, device: str, link: Link) -> Sequence[str]:
    return (
        "tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", "rate", f"{link.rate_bits_per_s}bit",
        "burst", f"{link.burst_bytes}b", "latency", f"{link.queue_ms}ms",
    )  # fmt: skip


def run_tool(command: Sequence[str], emulation_hint: str) -> None:
    """Run `ip` or `tc`, bounded in time.

    Raises:
        LabError: it failed; with what it said.
    """
    program = shutil.which(command[0], path=SEARCH_PATH) or command[0]
    try:
        result = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_TIMEOUT_S,
            start_new_session=True,  # a Ctrl-C at the terminal is the lab's business, not the tool's
        )
        said = (result.stderr or result.stdout).strip().splitlines()
        failed = result.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        said, failed = [str(error)], True
    if failed:
        raise LabError(
            f"`{' '.join(command)}` failed ({said[-1] if said else 'no message'})",
            "a kernel with network namespaces, veth, bridge and tbf, and the rights to use them (CAP_NET_ADMIN, "
            "CAP_SYS_ADMIN)",
            f"run on a machine that allows it, or do without: {emulation_hint}",
        )


def remove_leftovers() -> list[str]:
    """Remove what labs that were killed have left behind, processes included; returns the namespaces' names."""
    found = leftovers()
    remove_namespaces(found)
    return found


def remove_namespaces(names: Sequence[str], patience_s: float = 5.0) -> None:
    """Kill what runs inside the namespaces, then delete them and with them their interfaces.

    Raises:
        LabError: one cannot be deleted; the others are.
    """
    deadline_s = time.monotonic() + patience_s
    for name in names:
        while _kill_inside(name) and time.monotonic() < deadline_s:
            time.sleep(0.02)
    failures = []
    for name in names:
        try:
            run_tool(("ip", "netns", "delete", name), "remove it by hand")
        except LabError as error:
            # Another lab may have been faster with the same leftovers.
            if (NAMESPACES / name).exists():
                failures.append(error)
    if failures:
        raise failures[0]


def _kill_inside(namespace: str) -> bool:
    """Send SIGKILL to all processes inside; returns whether there were any."""
    found = False
    for pid in processes_inside(namespace):
        # The descriptor pins the process: it cannot become another one between the second look and the signal.
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                if is_inside(pid, (NAMESPACES / namespace).stat().st_ino):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    found = True
            finally:
                os.close(handle)
    return found


def enter_namespace(handle: int) -> None:
    """Move the calling thread into the network namespace behind an open descriptor.

    Raises:
        OSError: the kernel refuses.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(handle, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Within, this thread is in a namespace; sockets made there stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(NAMESPACES / namespace, os.O_RDONLY)
        try:
            enter_namespace(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            enter_namespace(home)
    finally:
        os.close(home)
