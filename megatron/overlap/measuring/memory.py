"""What computes, and what communication takes of its memory."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from megatron.overlap.measuring.structure import parameters_of
from overlap_recompute.plan.memory import static_bytes
from overlap_recompute.plan.profile import StaticRules


def base_of(
    device: torch.device, chunks: Sequence[nn.Module], rules: StaticRules, *, before_bytes: int, now_bytes: int
) -> int:
    """What a rank takes besides weights, gradients, optimizer state and activations.

    A CPU process grows in its first iterations by code, threads and buffers of libraries: what it takes between two
    iterations, less what the expression counts, is nearer to the truth than what it took before the model existed.

    Args:
        device: where the model lives.
        chunks: the model chunks of this rank.
        rules: bytes of an element.
        before_bytes: taken before the model existed; on a GPU that is the answer.
        now_bytes: taken between two iterations.
    """
    if device.type != "cpu":
        return before_bytes
    sizes = [parameters_of(chunk) for chunk in chunks]
    static = static_bytes(rules, sum(dense for dense, _ in sizes), sum(routed for _, routed in sizes))
    return max(before_bytes, now_bytes - static.total_bytes)


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
