"""The trainer on one GPU: all arms compute the same bits, a trace has the device's time, a run goes on where it was."""

import json
import pathlib
import sys

import pytest
import torch

from tests.distributed.conftest import ROOT, losses, read_metrics, report
from tests.distributed.launch import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and none is visible"),
]

MODEL = (
    "--num-layers 4 --hidden-size 256 --num-attention-heads 8 --seq-length 256 --max-position-embeddings 256 "
    "--micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --clip-grad 1.0 --seed 1234 --bf16 "
    "--attention-dropout 0.1 --hidden-dropout 0.1 --mock-data --tokenizer-type NullTokenizer --vocab-size 2047 "
    "--num-workers 0 --eval-iters 0 --log-interval 1 --distributed-backend nccl --deterministic-mode"
).split()
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}
SHARED = {"OVERLAP_TEST_BACKEND": "nccl", "LOCAL_RANK": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@pytest.mark.parametrize(("layout", "ranks"), [("one", 1), ("TP2", 2)])
def test_losses_gradients_and_weights_are_equal_bit_for_bit(layout: str, ranks: int) -> None:
    command = [sys.executable, "-m", "tests.gpu.training.equality_ranks", layout]
    results = run_ranks(command, ranks, env=SHARED, timeout_s=240, fresh=True)
    assert all(result.returncode == 0 for result in results), report(results)


def train(metrics: pathlib.Path, *flags: str) -> str:
    command = [sys.executable, str(ROOT / "pretrain_gpt.py"), *MODEL, "--metrics-file", str(metrics), *flags]
    results = run_ranks(command, 1, env=DETERMINISTIC, timeout_s=240, fresh=True)
    assert all(result.returncode == 0 for result in results), report(results)
    return results[0].output


def test_the_trainer_trains_traces_and_goes_on(tmp_path: pathlib.Path) -> None:
    ours = ["--overlap-recompute", "--overlap-recompute-trace", str(tmp_path / "traces")]
    saved = ["--save", str(tmp_path / "saved"), "--save-interval", "3"]
    output = train(tmp_path / "none.jsonl", "--train-iters", "6")
    train(tmp_path / "first.jsonl", "--train-iters", "6", "--exit-interval", "3", *ours, *saved)
    train(tmp_path / "second.jsonl", "--train-iters", "6", *ours, "--load", str(tmp_path / "saved"))
    none, first, second = (losses(tmp_path / f"{name}.jsonl") for name in ("none", "first", "second"))
    assert first + second == none and len(first) == 3
    figures = read_metrics(tmp_path / "second.jsonl")[-1]["extra"]
    assert figures["overlap/exposed_recompute_ms"] > 0, "no window on one rank: all is recomputed on demand"
    (trace,) = (tmp_path / "traces").glob("rank-*.json")
    names = {event["name"].split(" ")[0] for event in json.loads(trace.read_text())}
    assert "R(L3.linear_fc1)" in names, names
    assert "on cuda:0" in output


def test_a_measured_plan_is_followed(tmp_path: pathlib.Path) -> None:
    profile = tmp_path / "profile.json"
    train(tmp_path / "profile.jsonl", "--train-iters", "8", "--overlap-recompute-profile", str(profile))
    found = json.loads(profile.read_text())
    assert found["kinds"][0]["units"], "units were measured"
    output = train(tmp_path / "auto.jsonl", "--train-iters", "8", "--overlap-recompute", "--overlap-recompute-auto")
    none = tmp_path / "none.jsonl"
    train(none, "--train-iters", "8")
    assert losses(tmp_path / "auto.jsonl") == losses(none), output[-2000:]
