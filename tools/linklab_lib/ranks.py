"""Start the ranks, each in its host's namespace; pass on their output and signals; find out how they ended."""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import IO

from linklab_lib.console import Console, LinePrefixer
from linklab_lib.ending import Ending, RankEnd, RunEnd
from linklab_lib.links import Lab, LabError
from linklab_lib.network import INTERFACE, Network, enter_namespace
from linklab_lib.owner import NAMESPACES
from linklab_lib.stopping import StopSignals

MASTER_PORT = 29500
DRAIN_S = 0.5
"""How long output is still read after the last rank has ended: something it started may hold the pipe."""
READ_BYTES = 1 << 16
PR_SET_PDEATHSIG = 1
CANNOT_START_STATUS = 127


def environment_of(rank: int, lab: Lab, environ: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would set for a rank, and the interface that gloo and NCCL shall use."""
    host, local_rank = divmod(rank, lab.ranks_per_host)
    return {
        **environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(lab.world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(lab.ranks_per_host),
        "GROUP_RANK": str(host),
        "MASTER_ADDR": lab.address(0),
        "MASTER_PORT": str(MASTER_PORT),
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "NCCL_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": "1",
    }


class Ranks:
    """The ranks of one command. Use in a `with`: leaving it ends those that still run.

    Args:
        command: program and arguments, the same for every rank.
        lab: hosts, ranks and cores.
        network: the namespaces, up.
        console: takes the ranks' output.
        all_to_stderr: send also the ranks' standard output to standard error.
    """

    def __init__(
        self, command: Sequence[str], lab: Lab, network: Network, console: Console, *, all_to_stderr: bool
    ) -> None:
        self._command, self._lab, self._network, self._console = command, lab, network, console
        error_output = sys.stderr.fileno()
        self._targets = (error_output if all_to_stderr else sys.stdout.fileno(), error_output)
        self._selector = selectors.DefaultSelector()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._handles: list[int] = []
        self._open_pipes: set[int] = set()
        self._stopped_ranks: set[int] = set()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._signal_running(signal.SIGKILL)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()
        for handle in self._handles:
            os.close(handle)
        self._selector.close()

    def run(self, stop: StopSignals, *, timeout_s: float, grace_s: float) -> RunEnd:
        """Start all ranks and wait until the last has ended.

        A stop signal is passed on; after a failure of one rank the others have `grace_s` to end by themselves; after
        `timeout_s` they are stopped. Who is told to stop has `grace_s` for it.

        Raises:
            LabError: the command cannot be started.
            Interrupted: a stop signal came before all ranks were started.
            BrokenPipeError: nobody reads the output any more.
        """
        start_s, answered = time.monotonic(), 0
        ending = Ending(timeout_s=timeout_s, grace_s=grace_s)
        self._selector.register(stop.wake_descriptor, selectors.EVENT_READ, stop.clear_wake)
        for rank in range(self._lab.world_size):
            stop.checkpoint()
            self._start(rank)
        while self._running():
            self._pass_events(ending.wait_s())
            while answered < len(stop.received):
                self._signal_running(ending.asked_to_stop(stop.received[answered]))
                answered += 1
            if any(process.poll() for process in self._processes):
                ending.rank_failed()
            number = ending.due()
            if number is not None:
                if ending.is_labs_decision:
                    self._stopped_ranks.update(self._running())
                self._signal_running(number)
        wall_s = time.monotonic() - start_s
        self._drain()
        ends = tuple(self._end_of(rank) for rank in range(self._lab.world_size))
        return RunEnd(ranks=ends, timed_out=ending.timed_out, wall_s=wall_s)

    def _start(self, rank: int) -> None:
        host, core = rank // self._lab.ranks_per_host, self._core(rank)
        namespace = os.open(NAMESPACES / self._network.namespace(host), os.O_RDONLY)
        try:
            process = subprocess.Popen(
                list(self._command),
                env=environment_of(rank, self._lab, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                preexec_fn=_entry(namespace, core),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise LabError(
                f"rank {rank}: `{self._command[0]}` does not start ({error})",
                "a program that this user can run",
                "check the command after --",
                status=CANNOT_START_STATUS,
            ) from error
        finally:
            os.close(namespace)
        self._processes.append(process)
        self._handles.append(os.pidfd_open(process.pid))
        # A pidfd becomes readable when its process ends.
        self._selector.register(self._handles[-1], selectors.EVENT_READ, partial(self._forget, self._handles[-1]))
        for pipe, target in zip((process.stdout, process.stderr), self._targets, strict=True):
            assert pipe is not None
            lines = LinePrefixer(f"[rank {rank}] ".encode(), partial(self._console.write, target))
            self._open_pipes.add(pipe.fileno())
            self._selector.register(pipe, selectors.EVENT_READ, partial(self._read, pipe, lines))

    def _core(self, rank: int) -> int | None:
        return self._lab.cores[rank] if self._lab.cores else None

    def _running(self) -> list[int]:
        return [rank for rank, process in enumerate(self._processes) if process.poll() is None]

    def _pass_events(self, timeout_s: float | None) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def _forget(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def _read(self, pipe: IO[bytes], lines: LinePrefixer) -> None:
        data = os.read(pipe.fileno(), READ_BYTES)
        if not data:
            self._selector.unregister(pipe)
            self._open_pipes.discard(pipe.fileno())
        lines.feed(data)

    def _drain(self) -> None:
        deadline_s = time.monotonic() + DRAIN_S
        while self._open_pipes and time.monotonic() < deadline_s:
            self._pass_events(0.05)

    def _signal_running(self, number: int) -> None:
        for rank in self._running():
            # A rank leads a session of its own, so its children hear the signal too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._processes[rank].pid, number)

    def _end_of(self, rank: int) -> RankEnd:
        code = self._processes[rank].returncode
        return RankEnd(
            rank=rank,
            host=rank // self._lab.ranks_per_host,
            core=self._core(rank),
            exit_status=128 - code if code < 0 else code,
            stopped_by_lab=rank in self._stopped_ranks,
        )


def _entry(namespace: int, core: int | None) -> Callable[[], None]:
    """What a rank's process does before it becomes the command; the lab has one thread, so Python may run there."""
    lab_pid, control = os.getpid(), ctypes.CDLL(None).prctl

    def enter() -> None:
        control(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != lab_pid:
            os._exit(1)  # the lab died before its death could be announced
        enter_namespace(namespace)
        if core is not None:
            os.sched_setaffinity(0, (core,))

    return enter
