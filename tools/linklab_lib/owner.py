"""Whose a namespace is: names carry the process that made them, so what a killed lab left behind can be found."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAMESPACES = Path("/var/run/netns")
"""Where `ip netns` keeps its names."""

NAME = re.compile(r"linklab-(\d+)-(\d+)-(?:hub|h\d+)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process that runs a lab. Process ids come back, pairs of id and start time do not before the next boot."""

    pid: int
    """Its process id."""

    start_ticks: int
    """When it started, in clock ticks since boot (/proc/PID/stat, field 22)."""

    @classmethod
    def current(cls) -> "Owner":
        """This process."""
        return cls(pid=os.getpid(), start_ticks=_start_ticks(os.getpid()))

    @classmethod
    def of(cls, namespace: str) -> "Owner | None":
        """The owner that a namespace's name tells; None when it is not a lab's."""
        match = NAME.fullmatch(namespace)
        return cls(pid=int(match[1]), start_ticks=int(match[2])) if match else None

    @property
    def prefix(self) -> str:
        """How the names of its namespaces begin."""
        return f"linklab-{self.pid}-{self.start_ticks}"

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return _start_ticks(self.pid) == self.start_ticks


def _start_ticks(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    # The second field, the program's name in brackets, may hold anything; the state follows it. Z and X are dead.
    fields = status.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])


def namespaces_of(owner: Owner) -> list[str]:
    """Names of an owner's namespaces, in order."""
    return [name for name in _lab_namespaces() if Owner.of(name) == owner]


def leftovers() -> list[str]:
    """Namespaces of labs whose process has died without removing them."""
    return [name for name in _lab_namespaces() if (owner := Owner.of(name)) and not owner.is_alive()]


def _lab_namespaces() -> list[str]:
    return sorted(name for name in os.listdir(NAMESPACES) if NAME.fullmatch(name)) if NAMESPACES.is_dir() else []


def processes_inside(namespace: str) -> Iterator[int]:
    """Process ids of what runs inside a namespace."""
    try:
        inode = (NAMESPACES / namespace).stat().st_ino
    except OSError:
        return
    for entry in os.listdir("/proc"):
        if entry.isdigit() and is_inside(int(entry), inode):
            yield int(entry)


def is_inside(pid: int, inode: int) -> bool:
    """Whether a process uses the network namespace with this inode number."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino == inode
    except OSError:
        return False
