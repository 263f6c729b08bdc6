"""The batch scripts of examples/slurm on a real Slurm, with the real trainer."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.conftest import losses, read_metrics
from tests.slurm.cluster import ROOT, SlurmCluster
from tests.slurm.configuration import CPUS_PER_NODE
from tests.slurm.jobs import Job, submit

pytestmark = pytest.mark.timeout(900)  # the jobs of `story` count as one test; each wait has a limit of its own
ITERATIONS = 60
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0")
WHOLE = ("--train-iters", str(ITERATIONS), "--use-distributed-optimizer")
SLOWLY = "--emulate-link-gbps 10 --emulate-link-latency-us 60000\n"
"""An iteration takes some tenths of a second, and computes the same."""


def iterations(metrics: Path) -> int:
    return len(re.findall('"kind":"iteration"', metrics.read_text())) if metrics.exists() else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Jobs that share the two nodes, all at their end."""

    stopped: Job
    """A run on both nodes, stopped by the signal that comes before the time limit, then by an urgent job."""

    whole: Job
    """The same run on both nodes, with nothing that disturbed it; it ran while the first one waited to start again."""

    small: Job
    """A run of two ranks on one node, beside it."""

    urgent: Job
    """A run under torchrun that took both nodes."""


@pytest.fixture(scope="module")
def story(cluster: SlurmCluster, flags_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """One after the other in places where the first job waits, since a start takes seconds.

    The first job goes slowly until it has been stopped twice, so that it is never at its end before.
    """
    env, folder = {"FLAGS_FILE": str(flags_file)}, tmp_path_factory.mktemp("story")
    slow = folder / "slow.flags"
    slow.write_text(flags_file.read_text() + SLOWLY)
    tensor_parallel = ("--tensor-model-parallel-size", "2", "--sequence-parallel", "--train-iters")
    slow_env = {"FLAGS_FILE": str(slow)}
    job = submit(cluster, "pretrain_requeue.sbatch", folder / "stopped", options=TWO_NODES, env=slow_env, flags=WHOLE)
    metrics = folder / "stopped/metrics.jsonl"
    job.wait_until(lambda: iterations(metrics) >= 3, "a few iterations")
    cluster.ask("scancel", "--signal=USR1", job.job_id)  # what --signal=USR1@300 does
    job.wait_until(lambda: "requeued (restart 1)" in job.text(), "requeued by the script")
    done = iterations(metrics)
    whole = submit(cluster, "pretrain_multi_node.sbatch", folder / "whole", options=TWO_NODES, env=env, flags=WHOLE)
    options = ("--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=2")
    flags = (*tensor_parallel, "2")
    small = submit(cluster, "pretrain_single_node.sbatch", folder / "small", options=options, env=env, flags=flags)
    for each in (whole, small):  # the urgent job would stop them
        each.wait()
    job.wait_until(lambda: iterations(metrics) >= done + 3, "a few more")
    options = ("--partition=urgent", f"--cpus-per-task={CPUS_PER_NODE}", "--gpus-per-node=1")
    flags = (*tensor_parallel, "4")
    urgent = submit(cluster, "pretrain_torchrun.sbatch", folder / "urgent", options=options, env=env, flags=flags)
    job.wait_until(lambda: "DUE TO PREEMPTION" in job.text(), "stopped by the urgent job")
    slow.write_text(flags_file.read_text())  # the job reads it when it starts again
    for each in (urgent, job):  # the first job's ranks got SIGTERM and had KillWait to save
        each.wait()
    return Story(stopped=job, whole=whole, small=small, urgent=urgent)


def test_a_preempted_run_goes_on_bit_for_bit(story: Story) -> None:
    job, whole = story.stopped, story.whole
    assert whole.wait() == ("COMPLETED", 0), whole.text()
    assert job.wait() == ("COMPLETED", 0), job.text()
    assert job.field("Restarts") == "2" and "DUE TO PREEMPTION" in job.text()
    assert f"finished, iteration {ITERATIONS} of {ITERATIONS}" in job.text()
    assert "SIGUSR1 received" in job.text() and "SIGTERM received" in job.text()
    metrics = job.output.parent / "metrics.jsonl"
    assert len(read_metrics(metrics, "run")) == 3
    assert losses(metrics) == losses(whole.output.parent / "metrics.jsonl")


def test_two_ranks_of_one_node(story: Story) -> None:
    assert story.small.wait() == ("COMPLETED", 0), story.small.text()
    assert "2 ranks on cpu: tensor parallel 2" in story.small.text()
    assert len(losses(story.small.output.parent / "metrics.jsonl")) == 2


def test_torchrun_under_srun(story: Story) -> None:
    assert story.urgent.wait() == ("COMPLETED", 0), story.urgent.text()
    assert "2 ranks on cpu: tensor parallel 2" in story.urgent.text()
    assert story.urgent.field("NodeList") == "n[1-2]"
    assert len(losses(story.urgent.output.parent / "metrics.jsonl")) == 4


def test_a_cancelled_run_saves_and_stays_cancelled(cluster: SlurmCluster, flags_file: Path, tmp_path: Path) -> None:
    env, options = {"FLAGS_FILE": str(flags_file)}, ("--nodes=1", *TWO_NODES[1:])
    flags = ("--train-iters", "5000", "--micro-batch-size", "1")
    job = submit(cluster, "pretrain_requeue.sbatch", tmp_path, options=options, env=env, flags=flags)
    job.wait_until(lambda: iterations(tmp_path / "metrics.jsonl") >= 3, "a few iterations")
    cluster.ask("scancel", job.job_id)
    assert job.wait()[0] == "CANCELLED"
    saved = int((tmp_path / "checkpoints/latest_checkpointed_iteration.txt").read_text())
    assert saved == iterations(tmp_path / "metrics.jsonl") >= 3
    assert job.field("Restarts") == "0" and "requeued" not in job.text()


def test_an_array_runs_one_configuration_a_task(cluster: SlurmCluster, flags_file: Path, tmp_path: Path) -> None:
    """Two lines, three tasks: the third says that it has no line."""
    configs = tmp_path / "sweep.txt"
    configs.write_text("# two rates\n--lr 1e-3 --min-lr 1e-4\n\n--lr 5e-2 --min-lr 5e-3\n")
    array = submit(
        cluster, "sweep_array.sbatch", tmp_path,
        options=("--array=1-3%2", "--cpus-per-task=1", f"--output={tmp_path}/%a.txt"),
        env={"FLAGS_FILE": str(flags_file), "CONFIGS": str(configs)}, flags=("--train-iters", "3"),
    )  # fmt: skip
    tasks = [
        Job(cluster=cluster, job_id=f"{array.job_id}_{index}", output=tmp_path / f"{index}.txt") for index in (1, 2, 3)
    ]
    ends = [task.wait() for task in tasks]
    assert ends == [("COMPLETED", 0), ("COMPLETED", 0), ("FAILED", 2)], "\n".join(task.text() for task in tasks)
    runs = [losses(tmp_path / str(index) / "metrics.jsonl") for index in (1, 2)]
    assert [len(run) for run in runs] == [3, 3]
    assert runs[0][0] == runs[1][0], "the same seed"
    assert runs[0][2] != runs[1][2], "another learning rate"
    assert (tmp_path / "2/configuration.txt").read_text() == "--lr 5e-2 --min-lr 5e-3\n"
    assert "found array index 3 and 2 configurations" in tasks[2].text()


def test_a_fault_of_the_user_is_one_line_and_the_status_of_the_job(
    cluster: SlurmCluster, flags_file: Path, tmp_path: Path
) -> None:
    job = submit(
        cluster, "pretrain_requeue.sbatch", tmp_path, options=("--nodes=1", *TWO_NODES[1:]),
        env={"FLAGS_FILE": str(flags_file)}, flags=("--train-iters", "2", "--num-attention-heads", "3"),
    )  # fmt: skip
    assert job.wait() == ("FAILED", 2), job.text()
    lines = [line for line in job.text().splitlines() if not line.startswith(("srun:", "slurmstepd"))]
    assert len(lines) == 1 and "error: found" in lines[0] and "num-attention-heads" in lines[0], job.text()


def test_a_rank_without_srun_does_not_wait_for_the_others(
    cluster: SlurmCluster, flags_file: Path, tmp_path: Path
) -> None:
    script = tmp_path / "no_srun.sbatch"
    script.write_text(f"#!/bin/bash\n{sys.executable} {ROOT}/pretrain_gpt.py $(grep -v '#' {flags_file})\n")
    job = submit(cluster, str(script), tmp_path, options=TWO_NODES, env={})
    assert job.wait() == ("FAILED", 2), job.text()
    (line,) = job.text().splitlines()
    assert "found SLURM_NTASKS=2 in a batch script" in line and "put srun before the command" in line


def test_a_node_that_does_not_see_the_project_is_named(cluster: SlurmCluster, flags_file: Path, tmp_path: Path) -> None:
    project, empty = tmp_path / "project", tmp_path / "empty"
    for folder in (project, empty):
        folder.mkdir()
    for name in ("pretrain_gpt.py", "examples"):
        (project / name).symlink_to(ROOT / name)
    env = {"FLAGS_FILE": str(flags_file), "PROJECT_DIR": str(project)}
    with cluster.hidden("n2", project, empty):
        job = submit(cluster, "pretrain_multi_node.sbatch", tmp_path, options=TWO_NODES, env=env)
        assert job.wait() == ("FAILED", 2), job.text()
    assert f"n2: no {sys.executable} or no {project}/pretrain_gpt.py" in job.text()
    assert "error: found a node without the project (see above)" in job.text()
    assert "n1: no" not in job.text()
