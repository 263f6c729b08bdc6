"""Start a command once per rank, bounded in time, and leave nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """How one rank ended: exit status (negative: signal) and what it printed (stdout and stderr)."""

    rank: int
    returncode: int
    output: str


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RankProcesses:
    """The running ranks of one command. Use as a context manager: leaving it ends every rank.

    Each rank gets the environment that torchrun would give it (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
    MASTER_PORT), OMP_NUM_THREADS=1, and a process group of its own so that its children end with it.
    """

    def __init__(self, argv: Sequence[str], world_size: int, env: Mapping[str, str] | None = None) -> None:
        port = free_port()
        self.outputs = [tempfile.TemporaryFile() for _ in range(world_size)]  # noqa: SIM115 - closed by __exit__
        self.processes = []
        for rank in range(world_size):
            rank_env = {
                **os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), **(env or {}),
            }  # fmt: skip
            self.processes.append(
                subprocess.Popen(
                    list(argv),
                    env=rank_env,
                    stdin=subprocess.DEVNULL,
                    stdout=self.outputs[rank],
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            )

    def __enter__(self) -> "RankProcesses":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for output in self.outputs:
            output.close()

    def output(self, rank: int) -> str:
        """What a rank has printed so far."""
        descriptor = self.outputs[rank].fileno()
        # Not read(): the rank writes at the same file offset.
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def wait(self, timeout_s: float) -> list[RankResult]:
        """Wait for every rank; after `timeout_s` the rest is killed and shows as returncode -9."""
        deadline_s = time.monotonic() + timeout_s
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return [
            RankResult(rank=rank, returncode=process.returncode, output=self.output(rank))
            for rank, process in enumerate(self.processes)
        ]


def run_ranks(
    argv: Sequence[str], world_size: int, *, env: Mapping[str, str] | None = None, timeout_s: float = 180
) -> list[RankResult]:
    """Run `argv` on `world_size` ranks to the end; see `RankProcesses`."""
    with RankProcesses(argv, world_size, env) as ranks:
        return ranks.wait(timeout_s)
