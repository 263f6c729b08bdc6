"""gloo's threads ahead of what computes on the same core.

A transfer goes on only when a thread of gloo has read what arrived. Where a rank has one core, that thread waits until
what computes has had its turn, up to 3 ms each time, and the link idles meanwhile: recompute in a window would lengthen
the communication that it hides behind. Linux (6.12 and later) lets a thread that asks for short turns take the core as
soon as it wakes, as NCCL's kernels on a stream of high priority take a device.

NOTE [ no real-time priority ]
It shortens the waits a little more, and 4 of 9 runs stood still with it. The likely cause, not proved: gloo's loop
only tries to lock a connection, and tries again at once while the main thread holds it. In real time it does not let
the main thread go on.
"""

import ctypes
import os
import platform
import struct
from pathlib import Path

PREFIXES = ("gloo_", "pt_gloo_")
"""Of the threads' names: gloo's event loop, and torch's threads that run collectives over gloo."""
THREADS = Path("/proc/self/task")
TURN_NS = 100_000
"""The shortest that Linux gives."""
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""Number of the system call, which the C library has no function for."""
ATTRIBUTES = struct.Struct("<IIQiIQQQ")
"""`struct sched_attr`: size, policy, flags, niceness, priority, turn, deadline, period (sched_setattr(2))."""
SCHED_OTHER = 0


def give_gloo_short_turns() -> int:
    """Give gloo's threads in this process short turns; call when all process groups stand.

    Returns:
        How many have them now: 0 where the system has no such call.
    """
    number = SCHED_SETATTR.get(platform.machine()) if platform.system() == "Linux" else None
    if number is None:
        return 0
    call = ctypes.CDLL(None, use_errno=True).syscall
    given = 0
    for thread in gloo_threads():
        try:
            niceness = os.getpriority(os.PRIO_PROCESS, thread)
        except ProcessLookupError:  # it has ended
            continue
        wanted = ATTRIBUTES.pack(ATTRIBUTES.size, SCHED_OTHER, 0, niceness, 0, TURN_NS, 0, 0)
        given += call(number, thread, wanted, 0) == 0
    return given


def gloo_threads() -> list[int]:
    """Ids of gloo's threads in this process."""
    found = []
    for folder in THREADS.iterdir():
        try:
            name = (folder / "comm").read_text()
        except FileNotFoundError:  # it has ended
            continue
        if name.startswith(PREFIXES):
            found.append(int(folder.name))
    return sorted(found)
