"""The trainer from the command line: exact resume, preemption, a lost rank, faults of the user."""

import json
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.distributed.conftest import ROOT, Corpus, losses, read_metrics, report, trainer
from tests.distributed.launch import RANKS_TIMEOUT_S, RankProcesses, run_ranks

MODEL = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--attention-dropout 0.1 --hidden-dropout 0.1 --micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --min-lr 1e-4 "
    "--lr-decay-style cosine --lr-decay-iters 12 --log-interval 1 --eval-interval 4 --eval-iters 1 --seed 1234"
).split()
LAYOUTS = {
    "PP2 bf16": (2, "--pipeline-model-parallel-size 2 --bf16"),
    "TP2xDP2 distributed optimizer": (
        4,
        "--tensor-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer --overlap-grad-reduce "
        "--overlap-param-gather",
    ),
}
Train = Callable[..., list[float]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_run_continues_bit_for_bit(layout: str, tmp_path: pathlib.Path, train: Train) -> None:
    """Dropout, data position, optimizer, schedule and validation position all come back."""
    world_size, flags = LAYOUTS[layout]
    common = [*MODEL, *flags.split()]
    whole = train(world_size, [*common, "--train-iters", "12"], name="whole")
    saving = ["--save", str(tmp_path / "checkpoints"), "--save-interval", "5", "--async-save", "--train-iters", "12"]
    first = train(world_size, [*common, *saving, "--exit-interval", "6"], name="parts")
    assert first == whole[:6]
    # Iteration 6 was saved on exit; resuming from 5 makes the metrics file drop what is done again.
    resumed = train(world_size, [*common, *saving, "--load", saving[1], "--ckpt-step", "5"], name="parts")
    assert resumed == whole
    whole_evaluations = read_metrics(tmp_path / "whole.jsonl", "evaluation")
    evaluations = read_metrics(tmp_path / "parts.jsonl", "evaluation")
    assert [e["loss"] for e in evaluations] == [e["loss"] for e in whole_evaluations]
    assert len(evaluations) >= 3


def wait_for_iteration(metrics: pathlib.Path, iteration: int, ranks: RankProcesses) -> None:
    deadline_s = time.monotonic() + RANKS_TIMEOUT_S
    while time.monotonic() < deadline_s and all(process.poll() is None for process in ranks.processes):
        if metrics.exists() and len(re.findall('"kind":"iteration"', metrics.read_text())) >= iteration:
            return
        time.sleep(0.05)
    raise AssertionError(f"iteration {iteration} was not reached:\n{ranks.output(0)}\n{ranks.output(1)}")


def test_sigterm_saves_and_exits_with_zero_and_the_run_goes_on(tmp_path: pathlib.Path, corpus: Corpus) -> None:
    metrics = tmp_path / "metrics.jsonl"
    flags = [
        *corpus.flags, *MODEL, "--pipeline-model-parallel-size", "2", "--exit-signal-handler",
        "--metrics-file", str(metrics), "--save", str(tmp_path / "checkpoints"), "--save-interval", "10000",
    ]  # fmt: skip
    with RankProcesses(trainer(*flags, "--train-iters", "5000"), 2, fresh=True) as ranks:
        wait_for_iteration(metrics, 3, ranks)
        ranks.processes[1].send_signal(signal.SIGTERM)  # one rank is enough: they agree
        results = ranks.wait(RANKS_TIMEOUT_S)
    assert [r.returncode for r in results] == [0, 0], report(results)
    assert "SIGTERM received" in results[1].output
    done = int((tmp_path / "checkpoints/latest_checkpointed_iteration.txt").read_text())
    assert done == len(losses(metrics)) >= 3
    resume = ["--load", str(tmp_path / "checkpoints"), "--train-iters", "5000", "--exit-interval", str(done + 1)]
    again = run_ranks(trainer(*flags, *resume), 2)
    assert [r.returncode for r in again] == [0, 0], report(again)
    assert len(losses(metrics)) == done + 1


def test_a_killed_rank_ends_the_run_and_is_named(tmp_path: pathlib.Path, corpus: Corpus) -> None:
    metrics = tmp_path / "metrics.jsonl"
    flags = [
        *corpus.flags, *MODEL, "--train-iters", "5000", "--pipeline-model-parallel-size", "2",
        "--metrics-file", str(metrics), "--save", str(tmp_path / "checkpoints"), "--save-interval", "2",
    ]  # fmt: skip
    with RankProcesses(trainer(*flags), 2) as ranks:
        wait_for_iteration(metrics, 3, ranks)
        ranks.processes[1].kill()
        ranks.processes[0].wait(60)  # the watch finds it in seconds, gloo alone in minutes
        output = ranks.output(0)
    assert ranks.processes[0].returncode == 3, output
    assert re.search(r"rank 1 \(pipeline stage 1, host .*\) died", output), output
    done = int((tmp_path / "checkpoints/latest_checkpointed_iteration.txt").read_text())
    saved = json.loads((tmp_path / f"checkpoints/iter_{done:07d}/run.json").read_text())
    assert saved["progress"]["iteration"] == done >= 2 and done % 2 == 0


def test_all_timers_of_unlike_stages_are_reported(tmp_path: pathlib.Path, train: Train) -> None:
    """The stages of an interleaved pipeline have different timers; all ranks must report the same list."""
    layout = "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 --timing-log-level 2".split()
    train(2, [*MODEL, *layout, "--train-iters", "2"])
    timers_ms = read_metrics(tmp_path / "run.jsonl")[-1]["timers_ms"]
    assert timers_ms["forward-compute"] > 0 and "forward-send-forward-recv" in timers_ms


def test_a_checkpoint_of_another_model_is_refused_and_left_alone(tmp_path: pathlib.Path, corpus: Corpus) -> None:
    save = ["--save", str(tmp_path / "checkpoints"), "--save-interval", "2", "--train-iters", "2"]
    one = run_ranks(trainer(*corpus.flags, *MODEL, *save), 1)
    assert one[0].returncode == 0, report(one)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    wider = run_ranks(
        trainer(*corpus.flags, *MODEL, "--ffn-hidden-size", "192", *save, "--load", str(tmp_path / "checkpoints")), 1
    )
    assert wider[0].returncode == 2, report(wider)
    message = wider[0].output.splitlines()[-1]
    assert "ffn_hidden_size" in message and "192" in message and "256" in message, message
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# What the user got wrong -> (flags, words of the one line that says so). None of these runs may start a process group.
FAULTS = {
    "heads": ("--tensor-model-parallel-size 4 --num-attention-heads 6 --hidden-size 96", ["num-attention-heads", "6"]),
    "layers": ("--pipeline-model-parallel-size 4 --num-layers 6", ["num-layers", "6", "4"]),
    "batch": ("--global-batch-size 7", ["global-batch-size", "7"]),
    "layout": (
        "--pipeline-model-parallel-size 4 --pipeline-model-parallel-layout Et|t|t|L",
        ["pipeline-model-parallel-layout", "3", "4"],
    ),
    "unknown flag": ("--hiden-size 64", ["--hiden-size", "--hidden-size"]),
    "unsupported flag": ("--use-legacy-models", ["--use-legacy-models"]),
    "missing data": ("--data-path {missing}", ["missing"]),
    "truncated index": ("--data-path {truncated}", ["truncated.idx"]),
    "mismatched pair": ("--data-path {mismatched}", ["mismatched.bin"]),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> dict[str, str]:
    """Prefixes of damaged copies of the corpus."""
    folder = tmp_path_factory.mktemp("broken")
    index, tokens = corpus.prefix.with_suffix(".idx").read_bytes(), corpus.prefix.with_suffix(".bin").read_bytes()
    for name, idx, data in (("truncated", index[:-20], tokens), ("mismatched", index, tokens[:-64])):
        (folder / f"{name}.idx").write_bytes(idx)
        (folder / f"{name}.bin").write_bytes(data)
    return {name: str(folder / name) for name in ("missing", "truncated", "mismatched")}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_user_is_one_clear_line(fault: str, corpus: Corpus, broken: dict[str, str]) -> None:
    flags, words = FAULTS[fault]
    given = flags.format(**broken).split()
    data = [] if "--data-path" in given else corpus.flags[:2]
    environ = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    result = subprocess.run(
        [*trainer(*corpus.flags[2:], *MODEL, "--train-iters", "2"), *data, *given],
        env=environ, capture_output=True, text=True, timeout=120, cwd=ROOT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert "error: found" in line and "expected" in line
    for word in words:
        assert word in line, line
