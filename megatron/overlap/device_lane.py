"""Where a session replays and in whose time it marks: the device's, where there is one and somebody reads the trace."""

import logging

import torch

from megatron.overlap.settings import OverlapSettings
from overlap_recompute import ops
from overlap_recompute.ops.backend import make_backend
from overlap_recompute.runtime import InlineLane, Lane, StreamLane

logger = logging.getLogger(__name__)


def ring_of(settings: OverlapSettings) -> ops.EventRing:
    """Marks of the host; for a trace of a GPU marks of its streams, which cost two event calls each."""
    device = settings.device
    if device.type != "cuda" or settings.trace_folder is None:
        return ops.event_ring()
    if make_backend(device) is None:
        logger.warning(
            "the trace shows when the host launched, not when %s computed: that needs an extension with a CUDA part "
            "(see `overlap-recompute doctor`)", device,
        )  # fmt: skip
        return ops.event_ring()
    return ops.StreamMarks(device)


def lane_of(device: torch.device, ring: ops.EventRing) -> Lane:
    """The calling thread on a CPU; on a GPU the extension's side stream, or torch's where it has no CUDA part.

    Marks of streams are those of a lane, on a CPU as well, where the lane's stream is the calling thread.
    """
    marks = ring if isinstance(ring, ops.StreamMarks) else None
    if device.type != "cuda" and marks is None:
        return InlineLane()
    return StreamLane(ops.Lane(device, marks=marks))
