"""One rank of a trainer that goes wrong, started by test_overlap.py: overlap_faults.py MODE [flags]."""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from megatron.pretrain.distributed.failure import leave
from megatron.pretrain.main import main
from megatron.pretrain.platform import install_platform

install_platform("gloo")

import torch  # noqa: E402
from megatron.core.tensor_parallel.layers import ColumnParallelLinear  # noqa: E402 - after the platform

from megatron.overlap.session import OverlapSession  # noqa: E402
from overlap_recompute.runtime import Fill, RecomputeQueue  # noqa: E402

FAULTY_RANK = 1


def fail_in_the_fifth_replay() -> None:
    """On one rank, a linear of some unit raises."""
    open_session, stock, replays = OverlapSession.__init__, ColumnParallelLinear._forward_impl, []

    def opening(session: OverlapSession, *args: Any, **options: Any) -> None:
        open_session(session, *args, **options)

        def forward(linear: ColumnParallelLinear, *args: Any, **options: Any) -> Any:
            if session.runtime.replaying:
                replays.append(linear)
                if len(replays) == 5:
                    raise RuntimeError("cosmic ray")
            return stock(linear, *args, **options)

        ColumnParallelLinear._forward_impl = forward

    OverlapSession.__init__ = opening  # type: ignore[method-assign]


def fail_in_backward() -> None:
    """On one rank, the gradient of the weight behind the last layer's attention fails in the third microbatch."""
    open_session, gradients = OverlapSession.__init__, []

    def fail(gradient: torch.Tensor) -> None:
        gradients.append(gradient)
        if len(gradients) == 3:
            raise ArithmeticError("cosmic ray")

    def opening(session: OverlapSession, settings: Any, chunks: Any, *args: Any) -> None:
        open_session(session, settings, chunks, *args)
        *_, projection = (
            module for chunk in chunks for path, module in chunk.named_modules() if path.endswith("linear_proj")
        )
        projection.weight.register_hook(fail)

    OverlapSession.__init__ = opening  # type: ignore[method-assign]


def end_in_the_fifth_window(by: signal.Signals) -> None:
    """On one rank, the process is killed or stopped while it recomputes and a collective is in flight.

    The windows are held open for one unit, however late the rank came to them.
    """
    stock, filled = RecomputeQueue.fill, []

    def fill(queue: RecomputeQueue, until: Callable[[], bool], *args: Any, **options: Any) -> Fill:
        is_over = itertools.chain([False], itertools.repeat(True))
        found = stock(queue, lambda: next(is_over), *args, **{**options, "left_ns": None})
        filled.append(found.units)
        if found.units and len(filled) >= 5:
            os.kill(os.getpid(), by)
        return found

    RecomputeQueue.fill = fill  # type: ignore[method-assign]


def give_one_rank_other_flags(argv: list[str]) -> list[str]:
    """What a launcher with a typing error would do."""
    return [*argv, "--overlap-recompute-policy", "linear_fc1"]


if __name__ == "__main__":
    mode, argv = sys.argv[1], sys.argv[2:]
    if int(os.environ["RANK"]) == FAULTY_RANK:
        if mode == "replay":
            fail_in_the_fifth_replay()
        elif mode == "backward":
            fail_in_backward()
        elif mode == "death":
            end_in_the_fifth_window(signal.SIGKILL)
        elif mode == "silence":
            end_in_the_fifth_window(signal.SIGSTOP)
        else:
            argv = give_one_rank_other_flags(argv)
    status = main(argv)
    if status:
        leave(status)
