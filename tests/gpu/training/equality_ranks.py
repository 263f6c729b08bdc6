"""One rank on a GPU: arms of overlapped recompute compared bit for bit with a run without it.

    OVERLAP_TEST_BACKEND=nccl python -m tests.gpu.training.equality_ranks one

`TP2` puts two ranks on one GPU. NCCL refuses that, so their groups run over gloo, which takes CUDA tensors for the
collectives used here; the windows, the side stream and its fences are those of a GPU all the same.
"""

import functools
import os
import sys
from collections.abc import Sequence

import torch

from tests.distributed.overlap_support import BACKEND, DROPOUT, LLAMA, MOE, groups, train

ON = "--overlap-recompute --overlap-recompute-prefetch-mib 100"
ALL, SERIALIZED = f"{ON} --overlap-recompute-verify", f"{ON} --overlap-recompute-serialize"
SMALL_CAP, DEFAULT_CAP = "--overlap-recompute --overlap-recompute-prefetch-mib 0.05", "--overlap-recompute"
DELAYED = f"{DEFAULT_CAP} --overlap-recompute-delay-wgrad"
STOCK_FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
TP2 = "--tensor-model-parallel-size 2"
# Layout -> cases: the flags that all runs share, and the arms to compare with a run without the runtime.
LAYOUTS: dict[str, tuple[tuple[str, Sequence[str]], ...]] = {
    "one": (
        (f"{DROPOUT} --global-batch-size 4", (ALL, SERIALIZED, DEFAULT_CAP, STOCK_FULL)),
        (f"{DROPOUT} --global-batch-size 4 --bf16", (ALL, DEFAULT_CAP)),
        (f"{LLAMA} --global-batch-size 4 --bf16", (ALL, SERIALIZED)),
        (f"{MOE} --global-batch-size 4", (ALL,)),
    ),
    "TP2": (
        (f"{DROPOUT} {TP2} --global-batch-size 8", (ALL, SERIALIZED, SMALL_CAP, DEFAULT_CAP, DELAYED, STOCK_FULL)),
        (f"{DROPOUT} {TP2} --global-batch-size 8 --bf16", (ALL, DEFAULT_CAP)),
        (f"{LLAMA} {TP2} --global-batch-size 8 --bf16", (ALL, DEFAULT_CAP, DELAYED)),
    ),
}


class Works:
    """Several as one."""

    def __init__(self, works: list[torch.distributed.Work]) -> None:
        self._works = works

    def wait(self) -> bool:
        return min([work.wait() for work in self._works])


def groups_over_gloo() -> None:
    """Process groups of this process are gloo's; of its coalesced reductions, which take no CUDA tensors, each runs."""
    stock = torch.distributed.init_process_group

    def one_by_one(group: torch.distributed.ProcessGroup, tensors: list[torch.Tensor], given: object) -> Works:
        options = torch.distributed.AllreduceOptions()
        options.reduceOp = given.reduceOp  # type: ignore[attr-defined]
        return Works([group.allreduce([tensor], options) for tensor in tensors])

    torch.distributed.init_process_group = functools.wraps(stock)(lambda backend, **options: stock("gloo", **options))
    torch.distributed.ProcessGroup.allreduce_coalesced = one_by_one  # type: ignore[method-assign,assignment]


def main(layout: str) -> int:
    """Run a layout's cases; the exit status says whether all arms were equal."""
    assert BACKEND == "nccl" and torch.cuda.is_available()
    torch.use_deterministic_algorithms(True, warn_only=True)
    if int(os.environ["WORLD_SIZE"]) > 1:
        groups_over_gloo()
    failures = 0
    with groups(LAYOUTS[layout][0][0]):
        for flags, arms in LAYOUTS[layout]:
            reference = train(flags)
            assert all(buffer.any() for buffers in reference.gradients for buffer in buffers)
            repeated = train(flags).differences(reference)
            if repeated:  # then a difference of an arm says nothing
                print("does not repeat itself |", flags, "|", "; ".join(repeated[:3]))
                failures += 1
            for arm in arms:
                differences = train(flags, arm).differences(reference)
                failures += bool(differences)
                print("differs" if differences else "equal", "|", flags, "|", arm, "|", "; ".join(differences[:3]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
