"""The kinds of windows: spans in which a rank waits for a communication and may recompute."""

import enum


class WindowKind(enum.Enum):
    """Where the communication comes from."""

    TP_FORWARD = "tp_forward"
    """Tensor-parallel collectives of the forward pass; with sequence parallelism all-gather and reduce-scatter."""
    TP_BACKWARD = "tp_backward"
    """Tensor-parallel collectives of the backward pass: what the weight-gradient GEMM has not hidden by itself."""
    PP_WAIT = "pp_wait"
    """From the moment a pipeline stage has nothing to do but to wait for a peer's tensor."""
    EP = "ep"
    """Token exchange of mixture-of-experts layers."""
    CP = "cp"
    """Gathering keys and values with context parallelism."""
