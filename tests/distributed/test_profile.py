"""A run measures a profile, changes no number by it, and carries out a plan made from it (docs/profile.md)."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from megatron.overlap.trace_files import merge_traces
from overlap_recompute.plan.codec import write_record
from overlap_recompute.plan.plan_file import PLAN_VERSION, LayerPlan, MemoryTable, Plan, StagePlan, StagePrediction
from overlap_recompute.plan.profile import COMPUTE, Pass, Profile
from overlap_recompute.plan.run_trace import LANES
from overlap_recompute.plan.split import Split, layers_of, layout_text
from overlap_recompute.plan.validation import read_plan, read_profile
from overlap_recompute.report import read_traces
from overlap_recompute.schedules import pipeline_schedule
from tests.distributed.conftest import ROOT, losses, read_metrics, report, trainer
from tests.distributed.launch import run_ranks

SHORT = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --micro-batch-size 2 "
    "--global-batch-size 8 --lr 1e-3 --mock-data --vocab-size 256 --num-workers 0 --eval-iters 0 --log-interval 1 "
    "--attention-dropout 0.1"
).split()
FEW = "--overlap-recompute-profile-warmup 1 --overlap-recompute-profile-iterations 2".split()
BYTES_PER_MIB = 1 << 20
LINK = "--emulate-link-gbps 0.4".split()
NO_MEMORY = MemoryTable(
    parameters_bytes=0, gradients_bytes=0, optimizer_bytes=0, kept_bytes=0, prefetched_bytes=0, working_set_bytes=0,
    head_bytes=0, communication_bytes=0, base_bytes=0, margin_bytes=0,
)  # fmt: skip


def run(
    folder: pathlib.Path, name: str, flags: list[str], iterations: int = 4, log: list[str] | None = None
) -> list[float]:
    """Train on two ranks; returns the losses, and puts what the ranks wrote into `log`."""
    metrics = folder / f"{name}.jsonl"
    command = trainer(*SHORT, "--train-iters", str(iterations), *flags, "--metrics-file", str(metrics))
    results = run_ranks(command, 2)
    assert all(result.returncode == 0 for result in results), report(results)
    if log is not None:
        log.extend(result.output for result in results)
    return losses(metrics)


def plan_from(profile: Profile, split: Split) -> Plan:
    """Layer 1 drops all, layer 2 its feed-forward units, the others nothing."""
    dropped = {1: tuple(unit.name for unit in profile.kind_of(1).units), 2: ("linear_fc1", "activation")}
    return Plan(
        version=PLAN_VERSION,
        planner="none",
        created="2026-01-01T00:00:00",
        model_fingerprint=profile.model_fingerprint,
        layout=replace(profile.layout, split=split),
        software=profile.origin.software,
        budget_bytes=1 << 30,
        predicted_iteration_us=12000.0,
        stages=tuple(
            StagePlan(
                stage=stage,
                layers=tuple(
                    LayerPlan(layer=layer, chunk=chunk, dropped=dropped.get(layer, ()))
                    for chunk, layers in enumerate(chunks)
                    for layer in layers
                ),
                window_kinds=("tp_backward", "pp_wait"),
                prefetch_cap_bytes=1 << 20,
                fills=(),
                predicted=StagePrediction(
                    forward_us=1.0,
                    backward_us=1.0,
                    recompute_us=1.0,
                    exposed_us=500.0,
                    in_flight=(2 - stage,),
                    memory=NO_MEMORY,
                ),
            )  # fmt: skip
            for stage, chunks in enumerate(layers_of(split))
        ),
    )


def windows_of(steps: Pass) -> list[tuple[str, str]]:
    return [(step.kind, step.name) for step in steps if step.kind != COMPUTE]


def test_two_tensor_parallel_ranks(tmp_path: pathlib.Path) -> None:
    layout, file = ["--tensor-model-parallel-size", "2", *LINK], tmp_path / "new" / "profile.json"
    plain = run(tmp_path, "plain", layout)
    flags = [*layout, "--overlap-recompute", "--overlap-recompute-profile", str(file), *FEW]
    assert run(tmp_path, "measured", flags) == plain
    profile = read_profile(file)
    assert profile.layers == (0, 0, 0, 0)
    (kind,) = profile.kinds
    assert windows_of(kind.forward) == [("tp_forward", "all_reduce")] * 2
    assert windows_of(kind.backward) == [("tp_backward", "all_reduce")] * 2
    windows = [step for step in (*kind.forward, *kind.backward) if step.kind != COMPUTE]
    assert all(step.payload_bytes == 64 * 2 * 64 * 4 == profile.boundary_bytes for step in windows)
    assert [step.hidden_us > 0 for step in windows] == [False, False, True, True], "weight gradients hide some"
    assert windows_of(profile.embedding.forward) == [("tp_forward", "all_reduce")]
    assert windows_of(profile.head.backward) == [("tp_backward", "all_reduce")]
    assert [fit.name for fit in profile.links] == ["all_reduce", "all_gather", "reduce_scatter"]
    nbytes, duration_us = profile.links[0].points[-1]
    # A ring of two ranks sends every byte once each way; an emulated transfer never ends before its time.
    assert duration_us >= nbytes * 8e-3 / 0.4, "the link is slow"
    assert {unit.name: unit.is_random for unit in kind.units}["core_attention"]
    assert "emulated" in profile.origin.note
    assert profile.update_us > 0
    first, *_, last = read_metrics(tmp_path / "measured.jsonl")
    assert not first["extra"]
    assert last["extra"]["overlap/hidden_recompute_ms"] + last["extra"]["overlap/exposed_recompute_ms"] > 0
    each_us = sum(
        step.duration_us
        for steps in (
            *((kind.forward, kind.backward) * 4),
            *(steps for end in (profile.embedding, profile.head) for steps in (end.forward, end.backward)),
        )
        for step in steps
    )
    explained_ms = (each_us * profile.layout.microbatches + profile.update_us) / 1e3
    measured_ms = min(record["elapsed_ms"] for record in read_metrics(tmp_path / "plain.jsonl"))
    # Sizes, not speed (milliseconds for microseconds would show): other programs may run beside one of the two.
    assert measured_ms / 50 < explained_ms < 50 * measured_ms


def test_two_stages_measure_and_carry_out_a_plan(tmp_path: pathlib.Path) -> None:
    layout, file, plan_file = "--pipeline-model-parallel-size 2".split(), tmp_path / "p.json", tmp_path / "plan.json"
    command = [
        sys.executable, "-c", "import sys; from overlap_recompute.cli.main import main; sys.exit(main())", "profile",
        "--nproc", "2", "--warmup", "1", "--iterations", "2", "--output", str(file), "--", *SHORT, *layout,
        "--distributed-backend", "gloo",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "link send: " in done.stdout
    profile = read_profile(file)
    assert profile.layout.split == ((2,), (2,))
    assert profile.layers == (0, 0, 0, 0)
    assert not windows_of(profile.kinds[0].forward)
    words = 384 * 64  # 256 and an end of text, padded
    assert profile.tied_parameters == words
    assert profile.embedding.parameters == words + 64 * 64
    assert profile.head.parameters == words + 2 * 64
    split = ((1,), (3,))
    write_record(plan_file, plan_from(profile, split))
    plain = run(tmp_path, "plain", [*layout, "--pipeline-model-parallel-layout", "Et|t*3L"])
    planned = [*layout, "--overlap-recompute", "--overlap-recompute-plan", str(plan_file), "--overlap-recompute-verify"]
    planned += [*LINK, "--overlap-recompute-trace", str(tmp_path / "traces"), "--tensorboard-dir", str(tmp_path / "tb")]
    assert run(tmp_path, "planned", planned, log=(log := [])) == plain
    figures = read_metrics(tmp_path / "planned.jsonl")[-1]["extra"]
    measured = r"recompute \(ms\): hidden [\d.]+, exposed [\d.]+"
    predicted = r"predicted exposed \(ms\): 2\.0 \| predicted time per iteration \(ms\): 12\.0"
    told = rf"{measured} \| {predicted} \| bubble: [\d.]+% \|.* \| pp_wait: "
    assert len(re.findall(told, log[-1])) == 4, log[-1]
    assert 0 < figures["overlap/bubble_fraction"] < 1
    shown_by_tensorboard(tmp_path / "tb", figures)
    traced_as_scheduled(tmp_path)
    assert figures["overlap/predicted_iteration_ms"] == 12.0
    assert figures["overlap/predicted_exposed_ms"] == 2.0
    # The last stage drops everything of one layer and two units of another; the first stage nothing.
    wide_bytes = 64 * 2 * 256 * 4
    assert figures["overlap/dropped_bytes_per_microbatch"] > 4 * wide_bytes
    assert figures["overlap/hidden_recompute_ms"] + figures["overlap/exposed_recompute_ms"] > 0
    refuse_plans_that_differ(tmp_path, layout, profile, split)


def shown_by_tensorboard(folder: pathlib.Path, figures: dict[str, float]) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = events.EventAccumulator(str(folder)).Reload()
    for name, value in figures.items():
        assert shown.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6), name


def traced_as_scheduled(folder: pathlib.Path) -> None:
    """Joined over ranks, passes have the names of the schedule's actions, in its order, iteration after iteration."""
    merge_traces(sorted((folder / "traces").iterdir()), folder / "all.json")
    events = json.loads((folder / "all.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}
    for rank, actions in enumerate(pipeline_schedule(2, 1, 4)):
        passes = [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (rank, LANES.index("schedule"))]
        names = [event["name"] for event in sorted(passes, key=lambda event: event["ts"])]
        assert names == [str(action) for action in actions] * 4
    waits = {event["pid"] for event in events if event["ph"] == "X" and event["name"] == "pp_wait"}
    assert waits == {0, 1}
    for trace in read_traces(folder / "all.json"):
        assert trace.origin.planner == "none" and "the link between ranks was emulated, 0.4" in trace.origin.note


def refuse_plans_that_differ(folder: pathlib.Path, layout: list[str], profile: Profile, split: Split) -> None:
    """Each rank reads its own disk, and on that of rank 1 the plan under this name is another one."""
    for rank, budget_bytes in enumerate((1 << 30, 1 << 31)):
        (folder / f"rank-{rank}").mkdir()
        plan = replace(plan_from(profile, split), budget_bytes=budget_bytes)
        write_record(folder / f"rank-{rank}" / "plan.json", plan)
    metrics = folder / "refused.jsonl"
    flags = [*layout, "--overlap-recompute", "--overlap-recompute-plan", "plan.json", "--metrics-file", str(metrics)]
    results = run_ranks(changed_trainer("disks", str(folder), *SHORT, "--train-iters", "4", *flags), 2)
    assert all(result.returncode not in (0, -9) for result in results), report(results)
    assert "another plan on rank 1 than on rank 0" in results[0].output, report(results)
    assert not metrics.exists() or not read_metrics(metrics), "no iteration has run"


def changed_trainer(mode: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "tests.distributed.plan_ranks", mode, *words, "--distributed-backend", "gloo"]


def kept_when_measured(text: str) -> list[float]:
    """What measurements kept for backward, in MiB."""
    return [float(mib) for mib in re.findall(r"every unit recomputed on demand: ([0-9.]+) MiB kept", text)]


def test_a_run_plans_for_itself_again_and_again(tmp_path: pathlib.Path) -> None:
    layout = ["--tensor-model-parallel-size", "2", *LINK]
    auto = [*layout, "--overlap-recompute", "--overlap-recompute-auto", *FEW]
    plain = run(tmp_path, "plain", layout, iterations=13)
    metrics = tmp_path / "auto.jsonl"
    again = "--train-iters 13 --overlap-recompute-memory-gib 1 --overlap-recompute-replan-interval 3".split()
    results = run_ranks(changed_trainer("switch", *SHORT, *auto, *again, "--metrics-file", str(metrics)), 2)
    assert all(result.returncode == 0 for result in results), report(results)
    assert losses(metrics) == plain
    figures = [record["extra"] for record in read_metrics(metrics)]
    # Measured, a plan, measured anew, another plan; a third one would come too late.
    assert [bool(extra) for extra in figures] == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 4
    dropped = [extra["overlap/dropped_bytes_per_microbatch"] for extra in figures if extra]
    assert dropped[0] == dropped[2] > dropped[3] == dropped[-1] > 0
    assert all(extra["overlap/predicted_iteration_ms"] > 0 for extra in figures if extra)
    # The first plan drops everything, so that measuring keeps what it keeps, both times.
    kept_mib = [figures[3]["overlap/kept_peak_bytes"] / BYTES_PER_MIB] * 2
    assert kept_when_measured(results[0].output) == pytest.approx(kept_mib, abs=0.001), report(results)
    assert kept_mib[0] < 0.8 * figures[-1]["overlap/kept_peak_bytes"] / BYTES_PER_MIB
    changed = "measured anew, another plan is taken: layers 0-3: -input_layernorm -linear_qkv -core_attention"
    assert changed in results[0].output, report(results)
    command = trainer(*SHORT, "--train-iters", "4", *auto, "--overlap-recompute-memory-gib", "0.001")
    results = run_ranks(command, 2)
    assert all(result.returncode not in (0, -9) for result in results), report(results)
    assert "--overlap-recompute-auto without a plan" in results[0].output


def test_a_run_keeps_its_plan_and_the_next_start_follows_it(tmp_path: pathlib.Path) -> None:
    """The head of a large vocabulary is work for the last stage: the same command, started again, gives it less."""
    kept = tmp_path / "plan.json"
    large = ["--pipeline-model-parallel-size", "2", "--vocab-size", "32000"]  # six layers' worth
    auto = [*large, *FEW, "--overlap-recompute", "--overlap-recompute-auto", "--overlap-recompute-memory-gib", "1"]
    auto += ["--overlap-recompute-auto-plan", str(kept)]
    run(tmp_path, "first", auto, iterations=5, log=(log := []))
    assert f"the plan for the next start is in {kept}" in "".join(log)
    (front,), (back,) = read_plan(kept).layout.split
    assert front > back, "another split than this run's"
    second = run(tmp_path, "second", auto, iterations=5, log=(log := []))
    assert f"the plan in {kept}, which an earlier start has left, is followed: nothing is measured" in "".join(log)
    plain = [*large, "--pipeline-model-parallel-layout", layout_text(((front,), (back,)))]
    assert second == run(tmp_path, "plain", plain, iterations=5)
    figures = [[record["extra"] for record in read_metrics(tmp_path / f"{name}.jsonl")] for name in ("first", "second")]
    planned = [["overlap/predicted_iteration_ms" in extra for extra in extras] for extras in figures]
    assert planned == [[False] * 3 + [True] * 2, [True] * 5]
    refuse_plans_that_one_rank_finds(tmp_path, kept, [*auto[:-1], "plan.json"])


def refuse_plans_that_one_rank_finds(folder: pathlib.Path, kept: pathlib.Path, flags: list[str]) -> None:
    for rank in range(2):
        (folder / f"rank-{rank}").mkdir()
    shutil.copy(kept, folder / "rank-0" / "plan.json")
    results = run_ranks(changed_trainer("disks", str(folder), *SHORT, "--train-iters", "5", *flags), 2)
    assert all(result.returncode not in (0, -9) for result in results), report(results)
    told = "another plan of an earlier start in --overlap-recompute-auto-plan plan.json on rank 1 than on rank 0"
    assert told in results[0].output, report(results)
