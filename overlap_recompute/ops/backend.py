"""The extension's streams and events for a device, and handles of torch's streams."""

from typing import Any

import torch

from overlap_recompute.ops.native import extension, has_cuda


def current_stream(device: torch.device) -> int:
    """Handle of torch's current stream on a CUDA device; 0, the calling thread, on the CPU."""
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def make_backend(device: torch.device) -> Any:
    """The extension's streams and events for a device; None where the extension lacks them."""
    if extension is None or (device.type == "cuda" and not has_cuda):
        return None
    if device.type != "cuda":
        return extension.Backend.cpu()
    return extension.Backend.cuda(torch.cuda.current_device() if device.index is None else device.index)
