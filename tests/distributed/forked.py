"""Ranks that are forked from a process which has imported everything (rank_forks.py), and the handles on them."""

import atexit
import functools
import itertools
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0
"""For the imports, and for a fork; on a machine that does much else."""


class RankForks:
    """The process that forks ranks, and what it has told about them. Make one with `rank_forks`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.rank_forks"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._asking, self._hearing = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._numbers = itertools.count()
        self._heard = b""
        self._pids: dict[int, int] = {}
        self._statuses: dict[int, int] = {}

    def start(self, argv: Sequence[str], env: Mapping[str, str], output: str) -> "ForkedProcess":
        """Run `python ARGV...` in a forked process that writes to a file.

        Raises:
            AssertionError: the process that forks has ended, or does not answer.
        """
        number = next(self._numbers)
        asked = {"number": number, "argv": list(argv), "env": dict(env), "output": output}
        unsent = json.dumps(asked).encode() + b"\n"
        while unsent:
            unsent = unsent[os.write(self._asking, unsent) :]
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while number not in self._pids:
            assert time.monotonic() < deadline_s, f"no rank was forked in {START_TIMEOUT_S:g} s"
            self.listen(deadline_s - time.monotonic())
        return ForkedProcess(self, number, self._pids[number])

    def listen(self, at_most_s: float | None) -> None:
        """Take in what is told, if anything is within a time (None: wait for it)."""
        ready, _, _ = select.select([self._hearing], [], [], None if at_most_s is None else max(0.0, at_most_s))
        if not ready:
            return
        block = os.read(self._hearing, 1 << 16)
        assert block, f"the process that forks ranks has ended with {self._process.wait()}"
        *lines, self._heard = (self._heard + block).split(b"\n")
        for told in map(json.loads, lines):
            kind = self._pids if "pid" in told else self._statuses
            kind[told["number"]] = told.get("pid", told.get("status"))

    def status(self, number: int) -> int | None:
        """How a rank ended, as far as is known."""
        return self._statuses.get(number)

    def close(self) -> None:
        """End the process, and with it all its ranks."""
        os.close(self._asking)
        self._process.wait()


@functools.cache
def rank_forks() -> RankForks:
    """The one of this test run, started when the first rank is."""
    forks = RankForks()
    atexit.register(forks.close)
    return forks


class ForkedProcess:
    """What `subprocess.Popen` is to a process, to a forked rank."""

    def __init__(self, forks: RankForks, number: int, pid: int) -> None:
        self._forks, self._number, self.pid = forks, number, pid

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the signal; None: it was not seen to end yet."""
        return self._forks.status(self._number)

    def poll(self) -> int | None:
        """Exit status, if it has ended."""
        self._forks.listen(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit status.

        Raises:
            subprocess.TimeoutExpired: it runs on after `timeout` seconds.
        """
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while (status := self.returncode) is None:
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0 and self.poll() is None:
                raise subprocess.TimeoutExpired(["rank"], timeout or 0.0)
            self._forks.listen(left_s)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)
