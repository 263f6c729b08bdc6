"""Overlapped recompute changes when things are computed, and nothing else (docs/overlap.md)."""

import contextlib
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from megatron.overlap.flight import FLIGHT_EVENT
from megatron.overlap.trace_files import merge_traces
from megatron.pretrain.distributed.verdict import ExitCode
from overlap_recompute.cli.main import main
from overlap_recompute.plan.digest import plan_digest
from overlap_recompute.plan.validation import read_plan
from overlap_recompute.report import read_traces
from tests.distributed.conftest import ROOT, Corpus, losses, read_metrics, report, trainer
from tests.distributed.launch import RANKS_TIMEOUT_S, RankProcesses, RankResult, run_ranks
from tests.distributed.test_parity import GPT

Train = Callable[..., list[float]]
EQUALITY = {"one": 1, "TP2": 2, "PP2": 2, "VPP2": 2, "DP2": 2, "EP2": 2, "PP4": 4, "TP2xPP2": 4, "PP2xDP2": 4}
HERE = "chunk 0, pipeline stage 0"
TP2 = "--tensor-model-parallel-size 2".split()
SLOW_LINK = "--emulate-link-gbps 10 --emulate-link-latency-us 4000".split()
"""Windows last for milliseconds, however fast the machine is and whatever else it does."""


@pytest.mark.parametrize("layout", EQUALITY)
def test_losses_gradients_and_weights_are_equal_bit_for_bit(layout: str) -> None:
    """And what the journal says of the layout, if there are checks of it (overlap_journal.py)."""
    command = [sys.executable, "-m", "tests.distributed.overlap_equality", layout]
    results = run_ranks(command, EQUALITY[layout], timeout_s=240)
    assert all(result.returncode == 0 for result in results), report(results)


def test_the_trainer_reports_and_traces(tmp_path: pathlib.Path, corpus: Corpus) -> None:
    short = [*GPT, *TP2, "--train-iters", "4", "--eval-interval", "2", "--eval-iters", "1", *corpus.flags]
    found = {}
    for name, flags in {
        "none": [],
        "overlap": ["--overlap-recompute", "--overlap-recompute-trace", str(tmp_path / "traces"), *SLOW_LINK],
    }.items():
        metrics = tmp_path / f"{name}.jsonl"
        results = run_ranks(trainer(*short, *flags, "--metrics-file", str(metrics)), 2)
        assert all(result.returncode == 0 for result in results), report(results)
        found[name] = losses(metrics), [record["loss"] for record in read_metrics(metrics, "evaluation")]
    assert found["none"] == found["overlap"]
    first, *later = [record["extra"] for record in read_metrics(tmp_path / "overlap.jsonl")]
    layers, microbatches, bytes_per_layer = 4, 4, 2 * 32 * 2 * 64 * 4
    assert first["overlap/hidden_recompute_ms"] == 0
    assert first["overlap/exposed_recompute_ms"] > 0
    for figures in later:
        assert figures["overlap/windows/tp_forward"] == figures["overlap/windows/tp_backward"] == 9 * microbatches
        assert 0 < figures["overlap/filled_ms/tp_backward"] <= figures["overlap/window_ms/tp_backward"]
        assert figures["overlap/hidden_recompute_ms"] > 0
        assert figures["overlap/prefetched_peak_bytes"] <= 2 * figures["overlap/dropped_bytes_per_microbatch"] / layers
        assert layers * bytes_per_layer < figures["overlap/kept_bytes_per_microbatch"]
    traces = sorted((tmp_path / "traces").iterdir())
    assert [path.name for path in traces] == ["rank-00000.json", "rank-00001.json"]
    merge_traces(traces, tmp_path / "all.json")
    events = json.loads((tmp_path / "all.json").read_text())["traceEvents"]
    names = {(event["name"], event["pid"]) for event in events}
    for rank in (0, 1):
        assert {(name, rank) for name in ("0F0", "0B3", "tp_forward", "tp_backward", "R(L3.linear_fc1) 0.0")} <= names


def test_a_trace_says_which_plan_it_is_of(tmp_path: pathlib.Path, corpus: Corpus) -> None:
    """A run that measures, plans and traces; its profile and its trace make a page."""
    profile, plan, traces = tmp_path / "profile.json", tmp_path / "plan.json", tmp_path / "traces"
    measuring = "--overlap-recompute-profile-warmup 1 --overlap-recompute-profile-iterations 2".split()
    auto = ["--overlap-recompute", "--overlap-recompute-auto", "--overlap-recompute-memory-gib", "4", *measuring]
    files = ["--overlap-recompute-profile", str(profile), "--overlap-recompute-trace", str(traces)]
    short = [*GPT, *TP2, "--train-iters", "6", "--eval-iters", "0", *corpus.flags]
    results = run_ranks(trainer(*short, *auto, *files), 2)
    assert all(result.returncode == 0 for result in results), report(results)
    assert main(["plan", str(profile), "--memory-gib", "4", "--output", str(plan)]) == 0
    digests = {trace.origin.plan_digest for trace in read_traces(traces)}
    assert digests == {plan_digest(read_plan(plan))}
    page = tmp_path / "page.html"
    words = ["report", str(profile), str(plan), "--trace", str(traces), "--arms", "full", "--output", str(page)]
    assert main(words) == 0
    assert "measured: 2 ranks, " in page.read_text() and "of the trace, of median length among 2 " in page.read_text()


def test_the_peak_of_the_process_falls_by_what_is_dropped() -> None:
    """By all of it but the layer that is in backward, whose units are in memory again."""
    found, env = {}, {"MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-m", "tests.distributed.overlap_peak"]
    with contextlib.ExitStack() as stack:
        running = {
            policy: stack.enter_context(RankProcesses([*command, policy], 1, env, fresh=True))
            for policy in ("none", "all")
        }
        for policy, ranks in running.items():
            (result,) = ranks.wait(RANKS_TIMEOUT_S)
            assert result.returncode == 0, result.output
            found[policy] = json.loads(result.output.splitlines()[-1])
    dropped_bytes, layers = found["all"]["dropped_bytes"], 4
    assert found["none"]["dropped_bytes"] == 0 and dropped_bytes > 32 << 20
    saved_bytes = found["none"]["peak_bytes"] - found["all"]["peak_bytes"]
    assert 0.9 * dropped_bytes * (layers - 1) / layers <= saved_bytes <= 1.02 * dropped_bytes, found


@pytest.mark.parametrize("mode", ["replay", "backward", "death", "flags"])
def test_a_fault_ends_every_rank_and_names_its_place(mode: str, tmp_path: pathlib.Path, corpus: Corpus) -> None:
    """And each rank that can leaves its last marks beside the metrics file."""
    command = [sys.executable, "-m", "tests.distributed.overlap_faults", mode, "--distributed-backend", "gloo"]
    flags = [
        *corpus.flags,
        *GPT,
        *TP2,
        "--overlap-recompute",
        "--metrics-file",
        str(tmp_path / "run" / "metrics.jsonl"),
    ]
    results = run_ranks([*command, *flags], 2)
    assert results[0].returncode not in (0, -9), report(results)
    assert (results[1].returncode == -9) if mode == "death" else results[1].returncode not in (0, -9), report(results)
    everything = "".join(result.output for result in results)
    if mode == "replay":
        told = rf"rank 1: error: found unit 'linear_\w+' of layer \d, microbatch 0, {HERE}: .*cosmic ray"
        assert len(re.findall(told, results[1].output)) == 1, report(results)
        assert results[1].output.count("cosmic ray") == 1, "it surfaces once"
        assert "stopped because rank 1" in results[0].output
    elif mode == "backward":
        told = (
            "rank 1: failed: BackwardError: backward failed after it had read a tensor of unit 'core_attention' of "
            f"layer 3, microbatch 2, {HERE}: ArithmeticError: cosmic ray"
        )
        assert len(re.findall(told, results[1].output)) == 1, report(results)
        assert results[1].output.count("Traceback") == 2, "of the error and of its cause"
        assert "stopped because rank 1" in results[0].output
    elif mode == "death":
        assert "stopped because rank 1" in results[0].output
    else:
        assert "found other --overlap-recompute flags on rank 1 than on rank 0" in everything
        assert "iteration        1/" not in everything
    left_behind(mode, tmp_path / "run", results)


def test_a_rank_whose_collective_never_returns_leaves_its_last_marks(tmp_path: pathlib.Path, corpus: Corpus) -> None:
    """Its peer is stopped in a window: no error comes back, and the watch ends the process past its main thread."""
    command = [sys.executable, "-m", "tests.distributed.overlap_faults", "silence", "--distributed-backend", "gloo"]
    where = ["--metrics-file", str(tmp_path / "run" / "metrics.jsonl"), "--liveness-timeout-s", "5"]
    with RankProcesses([*command, *corpus.flags, *GPT, *TP2, "--overlap-recompute", *where], 2) as ranks:
        status = ranks.processes[0].wait(timeout=RANKS_TIMEOUT_S)
        result = RankResult(rank=0, returncode=status, output=ranks.output(0))
    assert status == ExitCode.PEER_LOST, report([result])
    assert "stopped because rank 1" in result.output and "Traceback" not in result.output, report([result])
    left_behind("silence", tmp_path / "run", [result])
    events = json.loads((tmp_path / "run" / "flight-rank-00000.json").read_text())
    (said,) = (event["args"]["error"] for event in events if event["name"] == FLIGHT_EVENT)
    assert re.search(r"stopped because rank 1 .* fell silent.*\(this rank was at \w+\.py:\d+ in \w+\)", said), said
    unfinished = {event["name"] for event in events if event.get("args", {}).get("unfinished")}
    assert unfinished & {"tp_forward", "tp_backward"}, unfinished


def left_behind(mode: str, folder: pathlib.Path, results: list[RankResult]) -> None:
    """The last marks of each rank whose step failed, named once in its own log; a killed rank leaves none."""
    leaving = {"replay": (0, 1), "backward": (0, 1), "death": (0,), "silence": (0,), "flags": ()}[mode]
    files = {rank: folder / f"flight-rank-{rank:05d}.json" for rank in leaving}
    assert sorted(folder.glob("flight-*")) == sorted(files.values()), report(results)
    for rank, path in files.items():
        assert results[rank].output.count(f"the last marks of this rank are in {path}") == 1, report(results)
        events = json.loads(path.read_text())
        (said,) = (event["args"]["error"] for event in events if event["name"] == FLIGHT_EVENT)
        assert ("cosmic ray" in said) == (rank == 1), said
        assert any(event["name"] == "0F0" for event in events)
        assert any(event.get("args", {}).keys() & {"failed", "unfinished"} for event in events)


def test_a_run_without_the_flag_loads_nothing_of_it() -> None:
    flags = (
        "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 8 --micro-batch-size 1 --train-iters 1 "
        "--lr 1e-3 --distributed-backend gloo --mock-data --vocab-size 16 --num-workers 0 --eval-iters 0"
    )
    program = (
        "import sys; from megatron.pretrain.main import main; assert main(sys.argv[1:]) == 0; "
        "names = 'overlap_recompute.runtime', 'megatron.overlap', 'megatron.pretrain.training.overlap'; "
        "print([module for module in sys.modules if module.startswith(names)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *flags.split()],
        cwd=ROOT, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout.strip().split("\n")[-1].replace("'", '"'))
    assert loaded == ["megatron.pretrain.training.overlap"], "that one asks for the flag"
