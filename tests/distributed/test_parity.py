"""The same seed trains the same model on every parallel layout, and stock recompute changes nothing.

Every case starts the real trainer. What a single rank computes is the reference; initial weights depend on names, not
on the layout (docs/adr/0003), and every layout reads the same global batches.
"""

import pathlib
from collections.abc import Callable

import pytest

from tests.distributed.conftest import read_metrics

TRAINING = (
    "--micro-batch-size 2 --global-batch-size 8 --train-iters 20 --lr 1e-3 --min-lr 1e-4 --lr-decay-style cosine "
    "--lr-warmup-iters 2 --weight-decay 0.1 --clip-grad 1.0 --seed 1234 --log-interval 1 --eval-interval 100 "
    "--eval-iters 0 --attention-dropout 0 --hidden-dropout 0 --seq-length 32 --max-position-embeddings 32 "
    "--make-vocab-size-divisible-by 256"
).split()
SHAPE = "--num-layers 4 --hidden-size 64 --num-attention-heads 4".split()
GPT = [*SHAPE, *TRAINING]
LLAMA = [
    *SHAPE, *TRAINING,
    *("--normalization RMSNorm --position-embedding-type rope --swiglu --disable-bias-linear "
      "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2").split(),
]  # fmt: skip
MOE = [
    *"--num-layers 2 --hidden-size 64 --num-attention-heads 4 --disable-bias-linear".split(), *TRAINING,
    *("--num-experts 4 --moe-router-topk 2 --moe-token-dispatcher-type alltoall "
      "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2").split(),
]  # fmt: skip

# Megatron pads the vocabulary to a multiple of this times TP, and padded rows take part in the softmax (logit 0 at the
# start): the layouts are one model only when they pad alike.
TP2 = "--tensor-model-parallel-size 2 --make-vocab-size-divisible-by 128"
PP2 = "--pipeline-model-parallel-size 2"
GPT_LAYOUTS = {
    "TP2": (2, TP2),
    "TP2+SP": (2, f"{TP2} --sequence-parallel"),
    "PP2": (2, PP2),
    "PP2xVPP2": (2, f"{PP2} --num-layers-per-virtual-pipeline-stage 1"),
    "uneven": (2, f"{PP2} --pipeline-model-parallel-layout Ettt|tL"),
    "DP2": (2, ""),
    "DP2 overlapped": (2, "--overlap-grad-reduce --ddp-bucket-size 20000"),
    "DP2 distributed optimizer": (2, "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"),
    "TP2xPP2": (4, f"{TP2} {PP2} --sequence-parallel"),
}
LLAMA_LAYOUTS = {"TP2xPP2": (4, f"{TP2} {PP2} --sequence-parallel"), "CP2": (2, "--context-parallel-size 2")}
MOE_LAYOUTS = {"EP2": (2, "--expert-model-parallel-size 2")}
RECOMPUTE = {
    "full uniform": "--recompute-granularity full --recompute-method uniform --recompute-num-layers 2",
    "full block": "--recompute-granularity full --recompute-method block --recompute-num-layers 1",
    "core_attn": "--recompute-granularity selective --recompute-modules core_attn",
    "layernorm": "--recompute-granularity selective --recompute-modules layernorm",
    "mlp": "--recompute-granularity selective --recompute-modules mlp",
}
Train = Callable[..., list[float]]


def assert_same_losses(found: list[float], reference: list[float], relative: float) -> None:
    assert len(found) == len(reference) == 20
    worst = max(abs(a - b) / abs(b) for a, b in zip(found, reference, strict=True))
    assert worst <= relative, f"losses differ by {worst:.2e} (allowed {relative:.0e}):\n{found}\n{reference}"
    assert reference[-1] < reference[0] - 0.5, "the reference did not learn: the comparison would be empty"


@pytest.fixture(scope="module")
def references() -> dict[str, list[float]]:
    """Losses of single-rank runs, made once each by the first test that needs them."""
    return {}


def reference_of(name: str, flags: list[str], train: Train, references: dict[str, list[float]]) -> list[float]:
    if name not in references:
        references[name] = train(1, flags, name=f"reference-{name}")
    return references[name]


@pytest.mark.parametrize("layout", GPT_LAYOUTS)
def test_gpt(layout: str, train: Train, references: dict[str, list[float]]) -> None:
    world_size, flags = GPT_LAYOUTS[layout]
    reference = reference_of("gpt", GPT, train, references)
    assert_same_losses(train(world_size, [*GPT, *flags.split()]), reference, 1e-5)


@pytest.mark.parametrize("layout", LLAMA_LAYOUTS)
def test_llama(layout: str, train: Train, references: dict[str, list[float]]) -> None:
    world_size, flags = LLAMA_LAYOUTS[layout]
    reference = reference_of("llama", LLAMA, train, references)
    assert_same_losses(train(world_size, [*LLAMA, *flags.split()]), reference, 1e-5)


@pytest.mark.parametrize("layout", MOE_LAYOUTS)
def test_mixture_of_experts(layout: str, train: Train, references: dict[str, list[float]]) -> None:
    world_size, flags = MOE_LAYOUTS[layout]
    reference = reference_of("moe", MOE, train, references)
    assert_same_losses(train(world_size, [*MOE, *flags.split()]), reference, 1e-5)


@pytest.mark.parametrize(
    ("layout", "layers"),
    [
        ("--expert-model-parallel-size 2", "1"),
        (f"{TP2} --sequence-parallel", "1"),
        (f"{PP2} --overlap-recompute", "[1,0]"),  # the last stage, which writes the log, has no experts
    ],
)
def test_losses_of_routers_are_those_of_one_rank(
    layout: str, layers: str, tmp_path: pathlib.Path, train: Train
) -> None:
    flags = [
        *MOE, *"--train-iters 4 --log-interval 2 --eval-interval 1 --eval-iters 1 --moe-z-loss-coeff 1e-3".split(),
        "--moe-layer-freq", layers,
    ]  # fmt: skip
    train(1, flags, name="one")
    train(2, [*flags, *layout.split()], name="two")
    one, two = (read_metrics(tmp_path / f"{name}.jsonl") for name in ("one", "two"))
    for expected, found in zip(one, two, strict=True):
        assert set(expected["auxiliary_losses"]) == {"load_balancing_loss", "z_loss"}
        assert found["auxiliary_losses"] == pytest.approx(expected["auxiliary_losses"], rel=1e-5)
    first, last = one[0]["auxiliary_losses"], one[-1]["auxiliary_losses"]
    assert first != last and all(0.9 < loss < 2.5 for loss in (*first.values(), *last.values())), (first, last)


@pytest.mark.parametrize("setting", RECOMPUTE)
def test_stock_recompute_leaves_the_losses_unchanged(
    setting: str, train: Train, references: dict[str, list[float]]
) -> None:
    reference = reference_of("gpt", GPT, train, references)
    assert train(1, [*GPT, *RECOMPUTE[setting].split()]) == reference


def test_bf16_trains(train: Train, references: dict[str, list[float]]) -> None:
    reference = reference_of("llama", LLAMA, train, references)
    found = train(2, [*LLAMA, "--bf16", *TP2.split(), "--sequence-parallel"])
    assert found != reference
    assert_same_losses(found, reference, 1e-2)
