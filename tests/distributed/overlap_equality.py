"""One rank of the equality tests: every arm must compute what a run without overlapped recompute computes.

Usage: overlap_equality.py LAYOUT. Started by test_overlap.py; prints one line per comparison, and ends with 1 when
anything differs. Where there are checks of the journal for the layout, they follow in the same process groups.
"""

import sys

from tests.distributed import overlap_delayed, overlap_journal
from tests.distributed.overlap_support import DROPOUT, GPT, LLAMA, MOE, STEPS, groups, train

ON = "--overlap-recompute --overlap-recompute-prefetch-mib 100"
ALL, SERIALIZED = f"{ON} --overlap-recompute-verify", f"{ON} --overlap-recompute-serialize"
ON_DEMAND = "--overlap-recompute --overlap-recompute-policy on-demand"
SMALL_CAP = "--overlap-recompute --overlap-recompute-policy all"
ARMS = (ALL, SERIALIZED, ON_DEMAND, SMALL_CAP)
STOCK = tuple(f"{arm} --schedule-impl stock" for arm in (ALL, SERIALIZED, SMALL_CAP))
"""Under Megatron-Core's schedules; pipelines take ours by themselves."""
DELAYED = f"{ON} --overlap-recompute-delay-wgrad"
EARLY = f"{ON} --overlap-recompute-windows pp_wait"
BY_STAGE = f"{ON} --overlap-recompute-policy 0:all,1:none"
UNITS = ("input_layernorm", "linear_qkv", "core_attention", "pre_mlp_layernorm", "linear_fc1", "activation")


STOCK_FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
STOCK_SELECTIVE = "--recompute-granularity selective --recompute-modules core_attn"


def by_unit(*units: str) -> tuple[str, ...]:
    return tuple(f"{ON} --overlap-recompute-policy all:{unit}" for unit in units)


PAIRS = by_unit("linear_fc1+activation", "core_attention+input_layernorm")
TP2, PP2 = "--tensor-model-parallel-size 2", "--pipeline-model-parallel-size 2"
PP4 = "--pipeline-model-parallel-size 4"
UNFUSED = "--attention-backend unfused"
NO_DROPOUT = "--attention-dropout 0 --hidden-dropout 0"
# Layout -> cases: the flags that all runs share, and the arms to compare with a run without the runtime.
LAYOUTS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "one": (
        (f"{GPT} --global-batch-size 4", (*ARMS, *by_unit(*UNITS), *PAIRS)),
        (f"{DROPOUT} --global-batch-size 4", (*ARMS, STOCK_FULL, STOCK_SELECTIVE)),
        (f"{DROPOUT} --global-batch-size 4 --bf16", (ALL, SMALL_CAP)),
        (
            f"{DROPOUT} --global-batch-size 4 {UNFUSED} --no-bias-gelu-fusion",
            (ALL, *by_unit("core_attention", "activation")),
        ),
        (f"{LLAMA} --global-batch-size 4", (*ARMS, *by_unit("rotary", "linear_qkv", "rotary+core_attention"))),
        (f"{LLAMA} --global-batch-size 4 --bf16 --qk-layernorm --no-bias-swiglu-fusion", ARMS),
        (f"{MOE} --global-batch-size 4", (*ARMS, *by_unit("activation", "linear_fc1"))),
        (f"{MOE} --global-batch-size 4 --swiglu --moe-shared-expert-intermediate-size 64", (ALL,)),
    ),
    "TP2": (
        (f"{DROPOUT} {TP2} --global-batch-size 4", (*ARMS, *PAIRS, DELAYED, STOCK_FULL, STOCK_SELECTIVE)),
        (f"{LLAMA} {TP2} --global-batch-size 4", (*ARMS, f"{DELAYED} --overlap-recompute-policy none")),
        (f"{DROPOUT} {TP2} --sequence-parallel --global-batch-size 4", (*ARMS, DELAYED)),
        (f"{LLAMA} {TP2} --sequence-parallel --global-batch-size 4 --bf16", (ALL, SERIALIZED)),
        (f"{DROPOUT} {TP2} --global-batch-size 4 --bf16", (ALL, DELAYED)),
        (f"{MOE} {TP2} --sequence-parallel --global-batch-size 4", (ALL, ON_DEMAND, DELAYED)),
    ),
    "PP2": (
        (f"{DROPOUT} {PP2} --global-batch-size 8", (*ARMS, *STOCK, EARLY, BY_STAGE)),
        (f"{LLAMA} {PP2} --global-batch-size 8 --bf16", (ALL, f"{ON} --overlap-recompute-policy 1:linear_fc1")),
        (f"{MOE} {PP2} --global-batch-size 8", (ALL, ON_DEMAND)),
        (f"{MOE} {NO_DROPOUT} {PP2} --global-batch-size 8 --bf16", (ALL,)),
    ),
    "VPP2": (
        (
            f"{DROPOUT} --num-layers 4 {PP2} --num-layers-per-virtual-pipeline-stage 1 --global-batch-size 8",
            (ALL, SERIALIZED, SMALL_CAP, EARLY, *STOCK),
        ),
        (
            f"{LLAMA} --num-layers 4 {PP2} --num-layers-per-virtual-pipeline-stage 1 --global-batch-size 8 --bf16",
            (ALL,),
        ),
        (f"{MOE} --num-layers 4 {PP2} --num-layers-per-virtual-pipeline-stage 1 --global-batch-size 8", (ALL,)),
    ),
    "DP2": (
        (f"{DROPOUT} --global-batch-size 8 --overlap-grad-reduce --ddp-bucket-size 20000", (ALL, SERIALIZED)),
        (
            f"{DROPOUT} --global-batch-size 8 --bf16 --use-distributed-optimizer --overlap-grad-reduce "
            f"--overlap-param-gather {UNFUSED}",
            (ALL, SERIALIZED),
        ),
    ),
    "PP4": (
        (f"{DROPOUT} --num-layers 4 {PP4} --global-batch-size 12", (ALL, EARLY, *STOCK[:1])),
        (f"{LLAMA} --num-layers 4 {PP4} --global-batch-size 12 --bf16", (ALL,)),
    ),
    "TP2xPP2": (
        (f"{DROPOUT} {TP2} {PP2} --sequence-parallel --global-batch-size 8", (ALL, BY_STAGE)),
        (f"{DROPOUT} {TP2} {PP2} --global-batch-size 8 --use-distributed-optimizer --overlap-grad-reduce", (DELAYED,)),
    ),
    "PP2xDP2": (
        (f"{DROPOUT} {PP2} --global-batch-size 16 --use-distributed-optimizer --overlap-grad-reduce", (ALL, BY_STAGE)),
        (f"{LLAMA} {PP2} --global-batch-size 16 --overlap-grad-reduce --bf16", (ALL,)),
    ),
    "EP2": (
        (f"{MOE} --expert-model-parallel-size 2 --global-batch-size 8", ARMS),
        (f"{MOE} --expert-model-parallel-size 2 --global-batch-size 8 --bf16", (ALL,)),
    ),
}  # fmt: skip


def main(layout: str) -> int:
    failures = 0
    cases = LAYOUTS[layout]
    with groups(cases[0][0]):
        for flags, arms in cases:
            reference = train(flags)
            steps = len(reference.gradients)
            assert steps == STEPS and all(buffer.any() for buffers in reference.gradients for buffer in buffers)
            for arm in arms:
                differences = train(flags, arm).differences(reference)
                failures += bool(differences)
                print("differs" if differences else "equal", "|", flags, "|", arm, "|", "; ".join(differences[:3]))
        if layout in overlap_journal.CHECKS:
            overlap_journal.CHECKS[layout]()
        if layout == "TP2":
            overlap_delayed.delayed()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
