"""Ranks that fail in every way there is: one process imports everything once and forks the ranks of each scenario.

Usage: python -m tests.distributed.fault_ranks FOLDER SCENARIO...
Writes FOLDER/SCENARIO.json: per rank the exit status, the output, and the seconds from the fault to the rank's end.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from megatron.pretrain.config import PretrainConfig, parse_command_line
from megatron.pretrain.distributed.failure import leave, run_guarded
from megatron.pretrain.platform import install_platform
from overlap_recompute.plan.errors import CheckpointError
from tests.distributed.launch import held_port

DEVICE = install_platform("gloo")

import torch  # noqa: E402 - after the platform, as in the trainer

from megatron.pretrain.distributed.initialize import Cluster, initialize_distributed  # noqa: E402
from megatron.pretrain.training.stop import StopConditions  # noqa: E402

BOUND_S = 100.0
"""A rank that has not ended by then hangs."""
FLAGS = [
    "--num-layers", "6", "--hidden-size", "64", "--num-attention-heads", "4", "--seq-length", "32", "--lr", "1e-3",
    "--micro-batch-size", "1", "--train-iters", "10", "--mock-data", "--tokenizer-type", "NullTokenizer",
    "--vocab-size", "100", "--distributed-backend", "gloo",
]  # fmt: skip
SHORT_WATCH_S, LONG_HOLD_S = 5.0, 6.0
SHORT_WATCH = ["--liveness-timeout-s", f"{SHORT_WATCH_S:g}"]
AT_ONCE = 3


def configuration(*flags: str) -> PretrainConfig:
    return parse_command_line([*FLAGS, "--pipeline-model-parallel-size", os.environ["WORLD_SIZE"], *flags], os.environ)


def beat(cluster: Cluster, iterations: int = 10**6) -> None:
    """All-reduce until something happens; says once that it is on its way."""
    for iteration in range(iterations):
        torch.distributed.all_reduce(torch.ones(1))
        if iteration == 2:
            os.write(1, b"running\n")
        time.sleep(0.02)


def run(*flags: str, act: Callable[[Cluster], None] = beat) -> int:
    with initialize_distributed(configuration(*flags), DEVICE) as cluster:
        act(cluster)
    return 0


def leave_a_child_behind(cluster: Cluster) -> None:
    """What a data loader's worker or a checkpoint's writer is to a rank that is killed."""
    if cluster.place.is_last_stage and os.fork() == 0:
        time.sleep(BOUND_S)
        os._exit(0)
    beat(cluster)


def raise_on_rank_1(cluster: Cluster) -> None:
    beat(cluster, 5)
    if cluster.place.rank == 1:
        raise ValueError("boom at sample 7")
    beat(cluster)


def raise_the_same_everywhere(cluster: Cluster) -> None:
    beat(cluster, 5)
    raise CheckpointError(found="a model of 3 layers", expected="6 layers", next_step="choose another --load")


def miss_a_collective(cluster: Cluster) -> None:
    beat(cluster, 5)
    if cluster.place.rank == 1:
        time.sleep(BOUND_S)
    beat(cluster)


def hold_the_interpreter_lock(cluster: Cluster) -> None:
    if cluster.place.rank < 2:
        with cluster.quiet():
            ctypes.PyDLL(None).usleep(int(LONG_HOLD_S * 1e6))  # PyDLL keeps the lock, as a dataset's index builder does
    torch.distributed.barrier()
    os.write(1, b"went on\n")


def stop_on_a_signal(cluster: Cluster) -> None:
    config = configuration("--exit-signal-handler")
    with StopConditions(config.training, host_group=cluster.host_group) as stop:
        for iteration in range(1, 10**6):
            beat(cluster, 1)
            if iteration == 3:
                os.write(1, b"running\n")
            if iteration % 2:
                stop.announce()
            time.sleep(0.01 * cluster.place.rank)
            if reason := stop.check(iteration):
                os.write(1, f"{reason.message}\n".encode())
                break
    time.sleep(0.5 * cluster.place.rank)  # the others wait until the slowest has saved


def say_where(cluster: Cluster) -> None:
    os.write(1, f"{cluster.place}\nseed {torch.initial_seed()}\n".encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    body: Callable[[], int]
    world_size: int = 3
    absent: tuple[int, ...] = ()
    strike: tuple[int, int] | None = None  # rank and signal, once every rank is running


SCENARIOS = {
    "kill_last": Scenario(body=lambda: run(act=leave_a_child_behind), strike=(2, signal.SIGKILL)),
    "kill_first": Scenario(body=run, strike=(0, signal.SIGKILL)),
    "stop_first": Scenario(body=lambda: run(*SHORT_WATCH), strike=(0, signal.SIGSTOP)),
    "stop_middle": Scenario(body=lambda: run(*SHORT_WATCH), strike=(1, signal.SIGSTOP)),
    "interrupt": Scenario(body=run, strike=(1, signal.SIGINT)),
    "raise": Scenario(body=lambda: run(act=raise_on_rank_1)),
    "raise_everywhere": Scenario(body=lambda: run(act=raise_the_same_everywhere)),
    "missed_collective": Scenario(
        body=lambda: run("--distributed-timeout-minutes", "0.1", act=miss_a_collective)
    ),
    "absent_last": Scenario(body=lambda: run("--distributed-timeout-minutes", "0.1"), absent=(2,)),
    "absent_first": Scenario(body=lambda: run("--distributed-timeout-minutes", "0.02"), absent=(0, 2)),
    "held_lock": Scenario(body=lambda: run(*SHORT_WATCH, act=hold_the_interpreter_lock)),
    "signal": Scenario(
        body=lambda: run("--exit-signal-handler", act=stop_on_a_signal), strike=(1, signal.SIGTERM)
    ),
    "alone": Scenario(body=lambda: run(act=say_where), world_size=1),
    "places": Scenario(
        body=lambda: run("--pipeline-model-parallel-size", "2", "--tensor-model-parallel-size", "2", act=say_where),
        world_size=4,
    ),
}  # fmt: skip


def play(scenario: Scenario, name: str, folder: pathlib.Path) -> None:
    """Run one scenario to its end and write down how each rank ended."""
    with held_port() as port:
        _play(scenario, name, port, folder)


def _play(scenario: Scenario, name: str, port: int, folder: pathlib.Path) -> None:
    for rank in range(scenario.world_size):
        (folder / f"{name}.{rank}").touch()  # it is looked into before the rank has come to open it
    pids = {
        rank: _fork(scenario, rank, port, folder / f"{name}.{rank}")
        for rank in range(scenario.world_size)
        if rank not in scenario.absent
    }
    try:
        ends = _strike_and_wait(pids, scenario, [folder / f"{name}.{rank}" for rank in pids])
    finally:
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    found = {
        rank: {"status": ends[rank][0], "after_s": ends[rank][1], "output": (folder / f"{name}.{rank}").read_text()}
        for rank in pids
    }
    (folder / f"{name}.json").write_text(json.dumps(found))


def _strike_and_wait(
    pids: dict[int, int], scenario: Scenario, outputs: list[pathlib.Path]
) -> dict[int, tuple[int, float]]:
    deadline_s = time.monotonic() + BOUND_S
    while scenario.strike and not all("running" in output.read_text() for output in outputs):
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.01)
    started_s = time.monotonic()
    if scenario.strike:
        os.kill(pids[scenario.strike[0]], scenario.strike[1])
    return _wait(pids, scenario, started_s, deadline_s)


def _fork(scenario: Scenario, rank: int, port: int, output: pathlib.Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    environ = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": scenario.world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environ.items()}, MASTER_ADDR="127.0.0.1")
    sys.argv[0] = "pretrain_gpt.py"
    leave(run_guarded(scenario.body))


def _wait(
    pids: dict[int, int], scenario: Scenario, started_s: float, deadline_s: float
) -> dict[int, tuple[int, float]]:
    """Exit status (negative: signal) and time of each rank's end; -99 where it had to be killed."""
    ends: dict[int, tuple[int, float]] = {}
    stopped = scenario.strike[0] if scenario.strike and scenario.strike[1] == signal.SIGSTOP else None
    while len(ends) < len(pids):
        for rank in pids.keys() - ends.keys():
            pid, status = os.waitpid(pids[rank], os.WNOHANG)
            if pid:
                ends[rank] = (os.waitstatus_to_exitcode(status), time.monotonic() - started_s)
            elif time.monotonic() > deadline_s:
                os.kill(pids[rank], signal.SIGKILL)
                os.waitpid(pids[rank], 0)
                ends[rank] = (-99, time.monotonic() - started_s)
        if stopped is not None and len(ends) == len(pids) - 1:
            os.kill(pids[stopped], signal.SIGCONT)
            stopped = None
        time.sleep(0.01)
    return ends


def main() -> None:
    folder, *names = sys.argv[1:]
    torch.set_num_threads(1)
    players: set[int] = set()
    for name in names or SCENARIOS:
        player = os.fork()
        if player == 0:
            play(SCENARIOS[name], name, pathlib.Path(folder))
            os._exit(0)
        players.add(player)
        while len(players) >= AT_ONCE:
            players.remove(os.wait()[0])
    while players:
        players.remove(os.wait()[0])


if __name__ == "__main__":
    main()
