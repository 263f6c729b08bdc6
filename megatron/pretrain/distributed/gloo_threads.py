"""gloo's threads ahead of what computes on the same core.

A transfer goes on only when a thread of gloo has read what arrived. Where a rank has one core, that thread waits until
the kernel takes the core from what computes, up to 3 ms each time, and the link idles meanwhile: recompute in a window
would lengthen the communication that it hides behind. Like NCCL's kernels on a stream of high priority, these threads
then come first. They sleep until data arrives, and need little time.
"""

import os
from pathlib import Path

PREFIXES = ("gloo_", "pt_gloo_")
"""Of the threads' names: gloo's event loop, and torch's threads that run collectives over gloo."""
PRIORITY = 1
"""The lowest of real time: ahead of all that computes, behind all else that asks for real time."""
THREADS = Path("/proc/self/task")


def put_gloo_first() -> int:
    """Give gloo's threads in this process real-time priority; call when all process groups stand.

    Returns:
        How many have it now: 0 where the system has no such priorities, or this process may not give them.
    """
    if not hasattr(os, "sched_setscheduler") or not THREADS.is_dir():
        return 0
    parameters = os.sched_param(PRIORITY)
    given = 0
    for thread in gloo_threads():
        try:
            os.sched_setscheduler(thread, os.SCHED_FIFO, parameters)
        except PermissionError:
            return given
        except ProcessLookupError:  # it has ended
            continue
        given += 1
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
