"""Steps that every rank takes or none: a failure on one rank becomes the same CheckpointError on all of them.

A rank that raises in the middle of a protocol leaves the others waiting in the next collective. Here the local part of
a step is caught, its outcome travels through the collective in place of the value, and rank 0 decides for all.
```
rank 0:  action() | gather outcomes | combine() | broadcast verdict | return or raise
rank r:  action() | send outcome    |           | receive verdict   | return or raise the same
```
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from overlap_recompute.plan.errors import CheckpointError, UserError

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The ranks of the default process group. Every method is a collective: all ranks call it, in the same order."""

    rank: int
    world_size: int

    @classmethod
    def of_job(cls) -> "Ranks":
        """All ranks of the job; the default process group must exist."""
        return cls(rank=dist.get_rank(), world_size=dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this rank decides."""
        return self.rank == 0

    def gather(self, step: str, action: Callable[[], T], combine: Callable[[list[T]], R]) -> R:
        """Run `action` on every rank, `combine` all values in rank order on rank 0, and return that on every rank.

        Args:
            step: what is done, for the error message ("writing iteration 20").
            action: local work; a collective inside it must come before anything that can fail on one rank only.
            combine: runs on rank 0 only, and only if every action succeeded. Its value is sent to all ranks.

        Raises:
            CheckpointError: some action, or `combine`, raised; the same error on every rank.
        """
        outcomes: list[tuple[UserError | None, Any]] | None = (
            [(None, None)] * self.world_size if self.is_first else None
        )
        dist.gather_object(attempt(step, self.rank, action), outcomes, dst=0)
        verdict: list[tuple[UserError | None, Any]] = [(None, None)]
        if outcomes is not None:
            verdict[0] = self._decide(step, outcomes, combine)
        dist.broadcast_object_list(verdict, src=0)
        failure, value = verdict[0]
        if failure is not None:
            raise failure
        return value

    def together(self, step: str, action: Callable[[], T]) -> T:
        """Run `action` on every rank and return the local value, once it is known that all of them succeeded."""
        values: list[T] = []
        self.gather(step, lambda: values.append(action()), lambda _: None)
        return values[0]

    def first(self, step: str, action: Callable[[], R]) -> R:
        """Run `action` on rank 0 and return its value on every rank."""
        return self.gather(step, lambda: None, lambda _: action())

    def _decide(
        self, step: str, outcomes: list[tuple[UserError | None, T]], combine: Callable[[list[T]], R]
    ) -> tuple[UserError | None, R | None]:
        failures = [failure for failure, _ in outcomes if failure is not None]
        if failures:
            return failures[0], None
        return attempt(step, self.rank, lambda: combine([value for _, value in outcomes]))


def attempt(step: str, rank: int, action: Callable[[], T]) -> tuple[UserError | None, T | None]:
    """Run `action`; return what it raised, as an error for the user, and what it returned."""
    try:
        return None, action()
    except UserError as error:
        return error, None
    except (Exception, CheckpointException) as error:
        failed_rank, cause = _first_failure(error) or (rank, error)
        return _explain(step, failed_rank, cause), None


def disk_error_behind(error: BaseException) -> BaseException:
    """The OSError that led to an error, if one did: torch reports a full disk as a wrong position in its archive."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError):
            return link
        link = link.__cause__ or link.__context__
    return error


def _explain(step: str, rank: int, cause: BaseException) -> UserError:
    if isinstance(cause, UserError):
        return cause
    cause = disk_error_behind(cause)
    next_step = "free space on the disk, check it and its permissions, or choose another folder"
    if not isinstance(cause, OSError):  # neither the user nor the disk: whoever mends this needs the traceback
        logger.error("%s failed", step, exc_info=cause)
        next_step = "see the traceback in the log of that rank"
    return CheckpointError(
        found=f"{type(cause).__name__} on rank {rank} while {step}: {cause}",
        expected="every rank to finish this step",
        next_step=f"{next_step}; checkpoints that were complete are untouched",
    )


def _first_failure(error: BaseException) -> tuple[int, BaseException] | None:
    """The lowest rank in an error of torch's own checkpoint collectives, and what went wrong there."""
    if not isinstance(error, CheckpointException) or not error.failures:
        return None
    rank = min(error.failures)
    return rank, error.failures[rank][0]
