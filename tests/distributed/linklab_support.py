"""Shared by the tests of tools/linklab: whether a lab is possible here, and what it has made."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINKLAB = [sys.executable, str(ROOT / "tools/linklab")]
NAMESPACES = pathlib.Path("/var/run/netns")


def why_not() -> str | None:
    """Why no lab can be brought up here; None when one can."""
    missing = [
        tool for tool in ("ip", "tc") if shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None
    ]
    if os.geteuid() != 0 or missing:
        return f"needs root, ip and tc; user id {os.geteuid()}, missing: {', '.join(missing) or 'nothing'}"
    probe = subprocess.run([*LINKLAB, "--rate", "1mbit", "--", "true"], capture_output=True, text=True, timeout=120)
    return None if probe.returncode == 0 else probe.stderr.strip()


def namespaces(lab: subprocess.Popen[str]) -> list[str]:
    """What a lab has made and not removed."""
    return [name for name in os.listdir(NAMESPACES) if name.startswith(f"linklab-{lab.pid}-")]


def interfaces() -> list[str]:
    """Interfaces of the machine itself that look like a lab's."""
    listing = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, timeout=10, check=True).stdout
    return re.findall(r"^\d+: (lab0|port\d+|switch)\b", listing, re.MULTILINE)


def is_running(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has waited for does not."""
    status = pathlib.Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> bool:
    """Poll until the condition holds; whether it did in time."""
    deadline_s = time.monotonic() + timeout_s
    while not (holds := condition()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return holds


def python(code: str) -> Sequence[str]:
    """The command of a rank that runs this code; -S -E: it starts in 10 ms."""
    return ("--", sys.executable, "-S", "-E", "-c", code)


SLEEPING_CHILDREN = (
    "import os, signal, subprocess, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
    "print('up', os.getpid(), child.pid, flush=True)\n"
    "time.sleep(600)\n"
)


def processes_of_ranks(lab: subprocess.Popen[str], ranks: int = 2) -> list[int]:
    """Wait until all ranks of SLEEPING_CHILDREN are up; the process ids of them and of their children."""
    assert lab.stdout is not None
    lines = [lab.stdout.readline() for _ in range(ranks)]
    return [int(word) for line in lines for word in line.split("up")[1].split()]
