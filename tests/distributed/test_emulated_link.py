"""The emulated link on real gloo ranks, and in the trainer."""

import pathlib
import re
import sys

from tests.distributed.conftest import Corpus, read_metrics, report, trainer
from tests.distributed.launch import run_ranks


def test_operations_take_their_time_and_nothing_else_changes() -> None:
    results = run_ranks([sys.executable, "-m", "tests.distributed.emulated_link_ranks"], 2)
    assert all(result.returncode == 0 for result in results), report(results)


def test_a_run_over_an_emulated_link_is_slower_and_says_so(tmp_path: pathlib.Path, corpus: Corpus) -> None:
    """TP=2, 2 layers: 8 all-reduces of 8 kB and more an iteration; at 1 Mbit/s these alone take half a second."""
    metrics = tmp_path / "metrics.jsonl"
    flags = (
        "--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 64 --micro-batch-size 1 "
        "--global-batch-size 1 --train-iters 2 --lr 1e-3 --eval-iters 0 --log-interval 1 "
        "--tensor-model-parallel-size 2 --emulate-link-gbps 0.001 --emulate-link-latency-us 100"
    )
    command = trainer(*corpus.flags, "--metrics-file", str(metrics), *flags.split())
    results = run_ranks(command, 2)
    assert all(result.returncode == 0 for result in results), report(results)
    assert "the link between ranks is emulated, 0.001 Gbit/s each way and 100 us" in results[0].output
    carried = re.search(r"emulated link: (\d+) transfers, .* busy for (\S+) emulated s", results[0].output)
    assert carried is not None, report(results)
    assert int(carried[1]) > 16
    assert all(record["elapsed_ms"] > 8 * 8192 * 8 / 1e3 for record in read_metrics(metrics))
