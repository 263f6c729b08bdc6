"""Which tensor a send or a receive moves, between which ranks, and in which queue it stands."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from overlap_recompute.plan.actions import POST_OF, Action, Kind
from overlap_recompute.schedules.shape import PipelineShape


class Traffic(enum.Enum):
    """What a message carries; the value is its tag where the transport has tags (gloo)."""

    ACTIVATION = 0
    """Output of a stage, input of the next: `[sequence, micro_batch, hidden]`, divided over ranks as the stages do."""
    GRADIENT = 1
    """Gradient of that tensor, on its way back: the same shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One tensor on its way between two ranks; the sender's and the receiver's action name the same message."""

    traffic: Traffic
    """Activation or gradient."""
    stage: int
    """The tensor is between virtual stages `stage` and `stage + 1`."""
    microbatch: int
    """Microbatch it belongs to."""
    source_rank: int
    """Pipeline rank that sends."""
    destination_rank: int
    """Pipeline rank that receives."""

    def __str__(self) -> str:
        what = self.traffic.name.lower()
        place = f"between stages {self.stage} and {self.stage + 1}"
        return f"{what} {place} of microbatch {self.microbatch}"


class Queues(enum.Enum):
    """Which messages must be received in the order in which they are sent."""

    PER_TRAFFIC = "per traffic"
    """One queue for each sender, receiver and kind of traffic: tags, or a process group for each kind."""
    PER_DIRECTION = "per direction"
    """One queue for each sender and receiver, whatever it carries: no tags, a process group for each direction."""
    PER_PAIR = "per pair"
    """One queue for each two ranks, both directions in it: one NCCL communicator of two ranks, whose operations run one
    after the other."""


_ENDS: Mapping[Kind, tuple[Traffic, int]] = {
    Kind.SEND_F: (Traffic.ACTIVATION, 0),
    Kind.RECV_F: (Traffic.ACTIVATION, -1),
    Kind.SEND_B: (Traffic.GRADIENT, -1),
    Kind.RECV_B: (Traffic.GRADIENT, 0),
}
"""What is moved, and where it lies: behind (0) or before (-1) the stage that the action names."""

RECEIVES = frozenset({Kind.RECV_F, Kind.RECV_B})

MOVES = frozenset({*_ENDS, *POST_OF})
"""Every kind that has a message: sends, receives and their waits."""


def message_of(action: Action, rank: int, shape: PipelineShape) -> Message | None:
    """The message that an action of `rank` starts or waits for.

    Args:
        action: of a kind in `MOVES`.
        rank: pipeline rank that has the action in its list.
        shape: size of the schedule.

    Returns:
        None where the pipeline ends: the first stage has no input from a peer, the last one sends no output.
    """
    traffic, offset = _ENDS[POST_OF.get(action.kind, action.kind)]
    stage = shape.stage(rank, action.chunk) + offset
    if not 0 <= stage < shape.stages - 1:
        return None
    ends = (stage % shape.ranks, (stage + 1) % shape.ranks)
    source, destination = ends if traffic is Traffic.ACTIVATION else ends[::-1]
    return Message(
        traffic=traffic,
        stage=stage,
        microbatch=action.microbatch,
        source_rank=source,
        destination_rank=destination,
    )


def queue_of(message: Message, queues: Queues) -> tuple[int, ...]:
    """The queue in which `message` stands, as a key."""
    ends = (message.source_rank, message.destination_rank)
    keys = {
        Queues.PER_TRAFFIC: (*ends, message.traffic.value),
        Queues.PER_DIRECTION: ends,
        Queues.PER_PAIR: (min(ends), max(ends)),
    }
    return keys[queues]
