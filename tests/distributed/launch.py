"""Start a command once per rank, bounded in time, and leave nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.distributed.forked import ForkedProcess, rank_forks

RANKS_TIMEOUT_S = 240.0
"""What a launch may take on a machine that does much else; alone none takes a quarter of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """How one rank ended: exit status (negative: signal) and what it printed (stdout and stderr)."""

    rank: int
    returncode: int
    output: str


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """A TCP port on loopback that nobody else is given meanwhile.

    A socket is bound to it and does not listen: the kernel then hands it out to no one who asks for any port, while a
    store, which reuses addresses, can open it by its number.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with held_port() as port:
        return port


class RankProcesses:
    """The running ranks of one command. Use as a context manager: leaving it ends every rank.

    Each rank gets the environment that torchrun would give it (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
    MASTER_PORT), OMP_NUM_THREADS=1, and a process group of its own so that its children end with it.

    Args:
        argv: a command of this Python: a file or `-m module`, and arguments.
        world_size: ranks.
        env: more of their environment.
        fresh: start a new interpreter for each; by default the ranks are forked from one that has imported what they
            import (rank_forks.py).
    """

    def __init__(
        self, argv: Sequence[str], world_size: int, env: Mapping[str, str] | None = None, *, fresh: bool = False
    ) -> None:
        assert argv[0] == sys.executable
        self._resources = contextlib.ExitStack()
        port = self._resources.enter_context(held_port())
        files = [tempfile.NamedTemporaryFile(prefix="rank-") for _ in range(world_size)]  # noqa: SIM115 - the stack does
        self.outputs = [self._resources.enter_context(file) for file in files]
        self.processes: list[ForkedProcess | subprocess.Popen[bytes]] = []
        for rank in range(world_size):
            rank_env = {
                **os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), **(env or {}),
            }  # fmt: skip
            start = self._new if fresh else self._forked
            self.processes.append(start(argv, rank_env, rank))

    def _new(self, argv: Sequence[str], env: Mapping[str, str], rank: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(argv),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self.outputs[rank],
            stderr=subprocess.STDOUT,
            process_group=0,
        )

    def _forked(self, argv: Sequence[str], env: Mapping[str, str], rank: int) -> ForkedProcess:
        return rank_forks().start(argv[1:], env, self.outputs[rank].name)

    def __enter__(self) -> "RankProcesses":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._resources.close()

    def output(self, rank: int) -> str:
        """What a rank has printed so far."""
        descriptor = self.outputs[rank].fileno()
        # Not read(): a rank that was not forked writes at the same file offset.
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def wait(self, timeout_s: float) -> list[RankResult]:
        """Wait for every rank; after `timeout_s` the rest is killed and shows as returncode -9."""
        deadline_s = time.monotonic() + timeout_s
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return [
            RankResult(rank=rank, returncode=process.returncode, output=self.output(rank))  # type: ignore[arg-type]
            for rank, process in enumerate(self.processes)
        ]


def run_ranks(
    argv: Sequence[str],
    world_size: int,
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = RANKS_TIMEOUT_S,
    fresh: bool = False,
) -> list[RankResult]:
    """Run `argv` on `world_size` ranks to the end; see `RankProcesses`."""
    with RankProcesses(argv, world_size, env, fresh=fresh) as ranks:
        return ranks.wait(timeout_s)
