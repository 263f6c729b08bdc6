"""Native parts of overlapped recomputation, each with a fallback in torch or Python: see docs/extension.md.

Replay kernels with a cap on thread blocks, the lane with its fences, the event ring, the emulated link; `build_info()`
says what of the compiled extension is there.
"""

from overlap_recompute.ops.backend import current_stream
from overlap_recompute.ops.emulated_link import EmulatedLink
from overlap_recompute.ops.lane import Fence, Lane, LaneCounts
from overlap_recompute.ops.marks import MARK, EventRing, MarkKind, event_ring
from overlap_recompute.ops.native import BuildInfo, build_info
from overlap_recompute.ops.operands import OperandError
from overlap_recompute.ops.replay import (
    bias_dropout_add_replay,
    bias_gelu_replay,
    layer_norm_replay,
    rms_norm_replay,
    row_statistics,
    swiglu_replay,
)
from overlap_recompute.ops.stream_marks import StreamMarks
from overlap_recompute.ops.streams import Streams

__all__ = [
    "MARK",
    "BuildInfo",
    "EmulatedLink",
    "EventRing",
    "Fence",
    "Lane",
    "LaneCounts",
    "MarkKind",
    "OperandError",
    "StreamMarks",
    "Streams",
    "bias_dropout_add_replay",
    "bias_gelu_replay",
    "build_info",
    "current_stream",
    "event_ring",
    "layer_norm_replay",
    "rms_norm_replay",
    "row_statistics",
    "swiglu_replay",
]
