"""What a pipeline rank does, one action at a time, and the one text form of an action.

An action is written CHUNK KIND MICROBATCH without spaces: `1F4` is the forward pass of model chunk 1 on microbatch 4,
`0WAIT_RECV_B3` waits for the gradient of what chunk 0 put out for microbatch 3. The chunk is the rank's own (Megatron's
`vp_stage`; 0 without interleaving), also in sends and receives. Builders, validator, simulator, profiler ranges and
traces all use this form; `parse_action(str(action)) == action`.
"""

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from overlap_recompute.plan.errors import UserError


class ScheduleError(UserError):
    """A text that is no action, or lists of actions that cannot be run.

    Args:
        found, expected, next_step: as in `UserError`.
        picture: lines to show below the sentence, e.g. a grid with the place marked.
    """

    def __init__(self, found: str, expected: str, next_step: str, picture: str = "") -> None:
        super().__init__(found, expected, next_step)
        self.picture = picture
        if picture:
            self.args = (f"{self.args[0]}\n{picture}",)

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:  # type: ignore[override]
        return type(self), (self.found, self.expected, self.next_step, self.picture)


class Kind(enum.Enum):
    """What an action does; the value is its part of the text form.

    "Input" and "output" are those of the chunk's forward pass. Sends and receives only start a transfer and never
    block; each has one WAIT that ends it.
    """

    F = "F"
    """Forward pass."""
    B = "B"
    """Backward pass; recomputes first whatever it needs and nobody recomputed ahead."""
    R = "R"
    """Recompute ahead: fill the wait that follows with recompute of what the backward pass will need; stop when the
    wait is over. A list may hold several for one microbatch: the next one goes on where the last one stopped."""
    SEND_F = "SEND_F"
    """Start sending the output."""
    RECV_F = "RECV_F"
    """Start receiving the input."""
    SEND_B = "SEND_B"
    """Start sending the gradient of the input."""
    RECV_B = "RECV_B"
    """Start receiving the gradient of the output."""
    WAIT_SEND_F = "WAIT_SEND_F"
    """Wait until the output is sent; only then may its memory be given back."""
    WAIT_RECV_F = "WAIT_RECV_F"
    """Wait until the input is here."""
    WAIT_SEND_B = "WAIT_SEND_B"
    """Wait until the gradient of the input is sent."""
    WAIT_RECV_B = "WAIT_RECV_B"
    """Wait until the gradient of the output is here."""

    # Members are singletons; the hash of `Enum` is a Python function and the bulk of the time of a look-up.
    __hash__ = object.__hash__


COMPUTE = frozenset({Kind.F, Kind.B})
"""What every schedule consists of; the rest moves tensors between these or prepares them."""

WAIT_OF: Mapping[Kind, Kind] = {
    Kind.SEND_F: Kind.WAIT_SEND_F,
    Kind.RECV_F: Kind.WAIT_RECV_F,
    Kind.SEND_B: Kind.WAIT_SEND_B,
    Kind.RECV_B: Kind.WAIT_RECV_B,
}
"""From what starts a transfer to what ends it."""

POST_OF: Mapping[Kind, Kind] = {wait: post for post, wait in WAIT_OF.items()}
"""From what ends a transfer to what starts it."""

WAITS_FOR_RECEIVE = frozenset({Kind.WAIT_RECV_F, Kind.WAIT_RECV_B})
"""Where a rank may have to wait for another one's work: the end of a `pp_wait` window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One action of one rank."""

    kind: Kind
    """What is done."""
    chunk: int
    """Model chunk of this rank, from 0."""
    microbatch: int
    """Microbatch of this step, from 0."""

    def __str__(self) -> str:
        return f"{self.chunk}{self.kind.value}{self.microbatch}"

    def as_kind(self, kind: Kind) -> "Action":
        """The action of another kind on the same chunk and microbatch."""
        return Action(kind=kind, chunk=self.chunk, microbatch=self.microbatch)


Actions = tuple[Action, ...]
"""What one rank does, in order."""

Grid = tuple[Actions, ...]
"""What all ranks of a pipeline do: one entry per rank, the first stage first."""

_KINDS: Mapping[str, Kind] = {kind.value: kind for kind in Kind}
_FORM = re.compile(r"(0|[1-9][0-9]*)([A-Z_]+)(0|[1-9][0-9]*)")


def parse_action(text: str) -> Action:
    """The action that `text` names.

    Raises:
        ScheduleError: it names none.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ScheduleError(f"the action {text!r}", "CHUNK KIND MICROBATCH as in 1F4 or 0WAIT_RECV_B3", "correct it")
    chunk, kind, microbatch = match.groups()
    if kind not in _KINDS:
        raise ScheduleError(f"the kind {kind!r} in the action {text!r}", f"one of {', '.join(_KINDS)}", "correct it")
    return Action(kind=_KINDS[kind], chunk=int(chunk), microbatch=int(microbatch))


def parse_actions(text: str) -> Actions:
    """The actions in `text`, which are separated by white space.

    Raises:
        ScheduleError: one of them is no action.
    """
    return tuple(parse_action(word) for word in text.split())


def format_actions(actions: Iterable[Action]) -> str:
    """The text form of a list: `parse_actions` reads it."""
    return " ".join(map(str, actions))
