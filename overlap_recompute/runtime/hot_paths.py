"""What happens for every saved tensor: in C++ where the extension is there, else in Python (docs/runtime.md, "Cost").

Whatever is unusual is left to the functions in Python, which do the same on the same objects.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from overlap_recompute.ops.native import extension
from overlap_recompute.runtime.calls import DROPPED, UnitCall
from overlap_recompute.runtime.handles import Entry, Handle, OutputRef, forget_output
from overlap_recompute.runtime.ledger import Ledger
from overlap_recompute.runtime.state import RuntimeState
from overlap_recompute.runtime.storages import Kept, Tally

Pack = Callable[[Tensor], Any]
Take = Callable[[Any], Tensor]
Remember = Callable[[UnitCall, Any], None]
HandleOf = Callable[[OutputRef, Tensor, bool], Handle | None]
FillOutput = Callable[[UnitCall, Entry, Tensor], None]
CLASSES = (Tensor, nn.Parameter, RuntimeState, UnitCall, Entry, Handle, OutputRef, Kept, Ledger, Tally)
PARTS = {**{each.__name__: each for each in CLASSES}, "DROPPED": DROPPED, "forget_output": forget_output}
"""What the functions in C++ must know of the runtime."""


def pack_hook(state: RuntimeState, twin: Pack) -> Pack:
    """The pack hook of forward passes, `Recorder.pack`."""
    return _hook("pack_hook", state, twin)


def capture_hook(state: RuntimeState, twin: Pack) -> Pack:
    """The pack hook of replays."""
    return _hook("capture_hook", state, twin)


def take_hook(state: RuntimeState, twin: Take) -> Take:
    """The unpack hook: calls `take` of what was packed."""
    return _hook("take_hook", state, twin)


def remember_output(state: RuntimeState, twin: Remember) -> Remember:
    """Lets the outputs of a dropped call be recognized: `Recorder._register`."""
    return _hook("remember_output", state, twin)


def handle_of_output(state: RuntimeState) -> HandleOf:
    """`OutputRef.handle`."""
    return _hook("handle_of_output", state, OutputRef.handle)


def fill_output(state: RuntimeState, twin: FillOutput) -> FillOutput:
    """Hands an output of a replay to its entry."""
    return _hook("fill_output", state, twin)


def _hook(name: str, state: RuntimeState, twin: Callable[..., Any]) -> Callable[..., Any]:
    if extension is None:
        return twin
    hook: Callable[..., Any] = getattr(extension, name)(extension.bookkeeping_layout(PARTS), state, twin)
    return hook
