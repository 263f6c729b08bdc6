"""What to make of an error on this rank: its own, or only the echo of another rank's end?"""

from collections.abc import Iterator

from megatron.pretrain.distributed.liveness import LivenessWatch
from megatron.pretrain.distributed.verdict import Cause, OwnFailure, PeerFailure
from megatron.pretrain.distributed.wire import shorten

DISTRIBUTED_ERRORS = ("DistError", "DistBackendError", "DistNetworkError", "DistStoreError")
ECHO_TEXTS = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "connection timed out",
    "broken pipe",
    "timed out waiting",
    "socket closed",
)


def settle(error: BaseException, watch: LivenessWatch | None) -> BaseException:
    """Tell the other ranks of an error that ends this one; returns what to raise from it.

    What is returned for the echo of another rank's end, `PeerFailure`, has been written to standard error already.

    Args:
        error: what ended this rank.
        watch: the watch over all ranks; None in a run of one process.
    """
    if isinstance(error, PeerFailure):
        return error
    interrupted, echo, text = isinstance(error, KeyboardInterrupt), may_be_echo(error), one_line(error)
    if watch is not None:
        cause = Cause.INTERRUPTED if interrupted else Cause.FAILED
        verdict = watch.report("Ctrl-C" if interrupted else text, cause=cause, echo=echo)
        known = verdict is not None and (interrupted or echo or verdict.detail == text)
        if verdict is not None and known and (verdict.rank, verdict.cause) != (watch.rank, cause):
            watch.tell(verdict)
            return PeerFailure(verdict)
    return error if interrupted else OwnFailure(text)


def may_be_echo(error: BaseException) -> bool:
    """Whether another rank's end may have caused this error: a collective or a connection failed, here or deeper."""
    return any(_is_communication(link) for link in _chain(error))


def one_line(error: BaseException) -> str:
    """Type and first line of an error; torch appends pages of native frames."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def _is_communication(error: BaseException) -> bool:
    if isinstance(error, ConnectionError):
        return True
    if any(kind.__name__ in DISTRIBUTED_ERRORS for kind in type(error).__mro__):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in ECHO_TEXTS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
