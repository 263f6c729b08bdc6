"""Memory of this process on the device that it trains on: its peak, and what is taken now."""

import ctypes
import re
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def peak_memory_bytes(device_type: str) -> int:
    """Return the peak so far, in bytes.

    Args:
        device_type: "cuda": what PyTorch's allocator has handed out on the current device, without its reserve and
            without NCCL's buffers; "cpu": resident memory of the process, libraries included.
    """
    return _PEAKS[device_type]()


def _peak_resident_bytes() -> int:
    """Peak resident set, from the kernel's own counter of this program where there is one.

    `getrusage` also counts what the process was before it became this program: a rank started by a large launcher
    reports the launcher.
    """
    status = Path("/proc/self/status")
    match = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    if match is not None:
        return int(match[1]) * 1024
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def used_bytes(device: torch.device) -> int:
    """Resident memory of this process; on a GPU what is taken of the device, by whomever."""
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return int(total_bytes - free_bytes)
    status = Path("/proc/self/status")
    match = re.search(r"^VmRSS:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(match[1]) * 1024 if match is not None else 0


def settled_bytes(device: torch.device) -> int:
    """`used_bytes` after malloc has given back what it holds without need, which glibc does when it is told to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if device.type == "cpu" else None
    if trim is not None:
        trim(0)
    return used_bytes(device)


_PEAKS: Mapping[str, Callable[[], int]] = {
    "cuda": lambda: torch.cuda.max_memory_allocated(),
    "cpu": _peak_resident_bytes,
}
