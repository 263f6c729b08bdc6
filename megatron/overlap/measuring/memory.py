"""What computes, and what communication takes of its memory."""

import re
from pathlib import Path

import torch


def communication_bytes(device: torch.device, base_bytes: int) -> int:
    """Buffers of communication libraries: what is taken besides torch's reserve and what was there before the model.

    On a CPU they are not told from other memory, and small: 0.
    """
    if device.type != "cuda":
        return 0
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return max(0, total_bytes - free_bytes - torch.cuda.memory_reserved(device) - base_bytes)


def hardware_of(device: torch.device) -> str:
    """What computes, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return f"{match[1].strip() if match else 'CPU'}, {torch.get_num_threads()} thread(s) a rank"
