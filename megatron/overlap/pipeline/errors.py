"""What ended a step, with the place in the schedule."""

from collections.abc import Sequence

from overlap_recompute.plan.actions import Action, format_actions

SHOWN = 3
"""Executed actions that a message quotes."""


class PipelineError(RuntimeError):
    """An action failed; the cause says why.

    Args:
        where: the sentence of `place_of`.
        cause: what the action raised.
    """

    def __init__(self, where: str, cause: BaseException) -> None:
        super().__init__(f"{where}: {type(cause).__name__}: {cause}")
        self.where = where


def place_of(rank: int, action: Action | None, executed: Sequence[Action]) -> str:
    """Where a rank was: `rank 1 failed at 0F3 (after 0B1 0SEND_B1 0RECV_F4)`.

    Args:
        rank: of the whole job.
        action: what ran; None between actions.
        executed: what had run before, in order.
    """
    at = "between actions" if action is None else f"at {action}"
    after = f" (after {format_actions(executed[-SHOWN:])})" if executed else ""
    return f"rank {rank} failed {at}{after}"
