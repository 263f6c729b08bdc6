"""What ended a run: the rank, the cause in one sentence, and the exit status that follows from it."""

from dataclasses import dataclass
from enum import Enum, IntEnum


class ExitCode(IntEnum):
    """Exit status of a rank."""

    DONE = 0
    """The run ended as asked, also on SIGTERM with --exit-signal-handler."""

    CRASH = 1
    """An unexpected exception on this rank."""

    USER_ERROR = 2
    """A fault that the user can mend, found on this rank (also argparse's status)."""

    PEER_LOST = 3
    """Another rank failed, died or fell silent; this one only stopped."""

    INTERRUPTED = 130
    """Ctrl-C (128 + SIGINT)."""


class Cause(str, Enum):
    """How a rank was lost, as a verb that follows "rank 2 ..."."""

    FAILED = "failed"
    """It raised an exception and said so."""

    DIED = "died"
    """Its connection closed without a word: killed, crashed, or its host went down."""

    SILENT = "fell silent"
    """Its connection stands, but nothing came for longer than --liveness-timeout-s."""

    INTERRUPTED = "was interrupted"
    """Its user pressed Ctrl-C."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The first cause that ended the run, as all ranks report it."""

    rank: int
    """The rank that was lost."""

    place: str
    """Where it ran: "pipeline stage 1, host n1, process 4711"."""

    cause: Cause
    """How it was lost."""

    detail: str
    """Its own error text, or what is known from outside."""

    def sentence(self) -> str:
        """One line that names the rank, its place and the cause."""
        return f"rank {self.rank} ({self.place}) {self.cause.value}: {self.detail}"

    def to_message(self) -> dict[str, str | int]:
        """A JSON-able form; `from_message` reverses it."""
        return {"rank": self.rank, "place": self.place, "cause": self.cause.value, "detail": self.detail}

    @classmethod
    def from_message(cls, message: dict) -> "Verdict":
        """Read what `to_message` wrote."""
        return cls(
            rank=int(message["rank"]),
            place=str(message["place"]),
            cause=Cause(message["cause"]),
            detail=str(message["detail"]),
        )


class PeerFailure(Exception):
    """Raised on a rank that must stop because of another one, after it said so; `verdict` says which and why."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(verdict.sentence())


class OwnFailure(Exception):
    """Raised from the exception that ended this rank, once the other ranks know of it."""
