"""The kinds of windows: spans in which a rank waits for a communication and may recompute."""

import difflib
import enum

from overlap_recompute.plan.errors import ConfigError


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


ALL_WINDOWS = "all"


def parse_windows(text: str, *, flag: str) -> frozenset[WindowKind]:
    """Read a choice of kinds: `all`, or names joined by `+`, as `tp_backward+ep`.

    Args:
        text: the choice.
        flag: what to call it in messages.

    Raises:
        ConfigError: a name that is none.
    """
    if text == ALL_WINDOWS:
        return frozenset(WindowKind)
    kinds = {kind.value: kind for kind in WindowKind}
    names = [name.strip() for name in text.split("+")]
    for name in names:
        if name not in kinds:
            near = difflib.get_close_matches(name, [*kinds, ALL_WINDOWS], n=1, cutoff=0.4)
            raise ConfigError(
                f"{flag} {text}, whose {name!r} is no kind of window",
                f"{ALL_WINDOWS}, or kinds of {', '.join(kinds)} joined by +",
                f"write {near[0]} if that was meant" if near else "correct the name",
            )
    return frozenset(kinds[name] for name in names)
