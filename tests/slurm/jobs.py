"""Submit the batch scripts of examples/slurm and watch what becomes of them."""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.cluster import ROOT, SlurmCluster

SCRIPTS = ROOT / "examples/slurm"
JOB_TIMEOUT_S = 300.0
POLL_S, LOOK_S = 0.1, 0.4
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that was submitted."""

    cluster: SlurmCluster

    job_id: str
    """Its number; NUMBER_INDEX for a task of an array."""

    output: Path
    """Its output file."""

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else "(no output)"

    def field(self, name: str) -> str:
        """A field of `scontrol show job`."""
        found = re.search(rf"\b{name}=(\S+)", self.cluster.ask("scontrol", "show", "job", "-o", self.job_id))
        assert found, f"no {name}"
        return found[1]

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Poll until the condition holds; fail with the job's output when it ends before, or the time is up."""
        deadline_s = time.monotonic() + JOB_TIMEOUT_S
        next_look_s = 0.0
        while not condition():
            time.sleep(POLL_S)
            if time.monotonic() > next_look_s:  # asking Slurm costs more than most conditions
                state = self.field("JobState")
                assert state not in FINAL_STATES or condition(), f"{what}: {state}\n{self.text()}"
                late = f"{what}: not after {JOB_TIMEOUT_S:g} s, {state} ({self.field('Reason')})\n{self.text()}"
                assert time.monotonic() < deadline_s, late
                next_look_s = time.monotonic() + LOOK_S

    def wait(self) -> tuple[str, int]:
        """Wait for the end of the job and of all its processes: its state and its exit status."""
        deadline_s = time.monotonic() + JOB_TIMEOUT_S
        while (state := self.field("JobState")) not in FINAL_STATES or self._is_completing():
            assert time.monotonic() < deadline_s, f"no end after {JOB_TIMEOUT_S:g} s: {state}\n{self.text()}"
            time.sleep(LOOK_S)
        return state, int(self.field("ExitCode").split(":")[0])

    def _is_completing(self) -> bool:
        """Whether processes are left: a cancelled job is CANCELLED at once, while its ranks save."""
        return self.cluster.ask("squeue", "--noheader", "--states=COMPLETING", f"--jobs={self.job_id}") != ""


def submit(
    cluster: SlurmCluster,
    script: str,
    folder: Path,
    *,
    options: Sequence[str],
    env: Mapping[str, str],
    flags: Sequence[str] = (),
) -> Job:
    """Submit a script of examples/slurm, for ranks on CPUs that keep everything in `folder`.

    Args:
        cluster: where to.
        script: name of the script.
        folder: for output, checkpoints and metrics.
        options: of sbatch.
        env: variables that steer the script.
        flags: of pretrain_gpt.py.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output.txt"
    answer = cluster.run(
        *("sbatch", "--parsable", f"--output={output}", *options, str(SCRIPTS / script), *flags),
        env={"PYTHON": sys.executable, "BACKEND": "gloo", "RUN_DIR": str(folder), "OMP_NUM_THREADS": "1", **env},
    )
    assert answer.returncode == 0, answer.stderr
    return Job(cluster=cluster, job_id=answer.stdout.strip(), output=output)
