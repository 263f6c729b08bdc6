"""The cluster of these tests leaves nothing behind, however its process ends."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from linklab_lib.owner import NAMESPACES, processes_inside

from tests.distributed.linklab_support import is_running
from tests.slurm.cluster import ROOT, remove_dead_clusters, why_not

HOLD = """
import sys, time
from tests.slurm.cluster import running_cluster
with running_cluster() as cluster:
    print(cluster.folder, flush=True)
    cluster.run("sbatch", "--nodes=2", "--gpus-per-node=0", "--output=/dev/null", "--wrap", "srun sleep 600")
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that holds a cluster with a running job, and the cluster's folder."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert process.stdout.readline() == "up\n"
        yield process, folder
    finally:
        process.kill()
        process.communicate()
        remove_dead_clusters()


def left(process: subprocess.Popen[str]) -> list[str]:
    """Namespaces of the process's cluster."""
    return [path.name for path in NAMESPACES.iterdir() if path.name.startswith(f"linklab-{process.pid}-")]


def test_sigterm_takes_all_of_it_down(held: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = held
    names = left(process)
    inside = [pid for name in names for pid in processes_inside(name)]
    assert len(names) == 4 and len(inside) >= 4 and folder.is_dir()
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == -signal.SIGINT
    assert not left(process) and not folder.exists()
    assert not [pid for pid in inside if is_running(pid)]


def test_what_a_killed_process_leaves_is_removed_by_the_next(held: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = held
    inside = [pid for name in left(process) for pid in processes_inside(name)]
    process.kill()
    process.wait()
    assert left(process) and folder.is_dir()
    remove_dead_clusters()
    assert not left(process) and not folder.exists()
    assert not [pid for pid in inside if is_running(pid)]
