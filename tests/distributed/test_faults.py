"""A rank that dies, stops, raises or never comes: all others end soon, with a status and a message that names it."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from megatron.pretrain.distributed.verdict import ExitCode
from tests.distributed.conftest import ROOT, report
from tests.distributed.launch import held_port, run_ranks

CRASH_BOUND_S = 30.0
"""From the fault to the end of all ranks; a few seconds on a machine that does nothing else."""
SILENCE_BOUND_S = CRASH_BOUND_S + 5.0
"""With --liveness-timeout-s 5."""
LONG_HOLD_S = 6.0
"""How long fault_ranks.py holds the interpreter's lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """How a rank ended: exit status (negative: signal), seconds after the fault, and what it printed."""

    status: int
    after_s: float
    output: str


Ends = dict[int, RankEnd]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """All scenarios of fault_ranks.py, played once."""
    folder = tmp_path_factory.mktemp("faults")
    results = run_ranks([sys.executable, "-m", "tests.distributed.fault_ranks", str(folder)], 1, timeout_s=280)
    assert results[0].returncode == 0, report(results)
    return folder


def ends(folder: pathlib.Path, scenario: str) -> Ends:
    found = json.loads((folder / f"{scenario}.json").read_text())
    return {int(rank): RankEnd(**end) for rank, end in found.items()}


def line_of(end: RankEnd, beginning: str) -> str:
    """The only line that begins like this."""
    lines = [line for line in end.output.splitlines() if line.startswith(beginning)]
    assert len(lines) == 1, end.output
    return lines[0]


@pytest.mark.parametrize(
    ("scenario", "lost", "stage", "cause", "bound_s"),
    [
        ("kill_last", 2, 2, "died", CRASH_BOUND_S),
        ("kill_first", 0, 0, "died", CRASH_BOUND_S),
        ("stop_first", 0, 0, "fell silent", SILENCE_BOUND_S),
        ("stop_middle", 1, 1, "fell silent", SILENCE_BOUND_S),
    ],
)
def test_a_lost_rank_stops_all_others_and_is_named(
    played: pathlib.Path, scenario: str, lost: int, stage: int, cause: str, bound_s: float
) -> None:
    for rank, end in ends(played, scenario).items():
        if rank != lost:
            assert end.status == ExitCode.PEER_LOST
            assert end.after_s < bound_s
            line = line_of(end, f"pretrain_gpt.py: rank {rank}: stopped because")
            assert f"rank {lost} (pipeline stage {stage}, host " in line
            assert cause in line
            assert "Traceback" not in end.output


def test_a_stopped_rank_that_goes_on_learns_that_it_was_lost(played: pathlib.Path) -> None:
    for scenario, lost in (("stop_first", 0), ("stop_middle", 1)):
        end = ends(played, scenario)[lost]
        assert end.status == ExitCode.PEER_LOST
        assert "the other ranks lost this one" in line_of(end, f"pretrain_gpt.py: rank {lost}: stopped")


def test_an_exception_shows_once_and_its_text_everywhere(played: pathlib.Path) -> None:
    found = ends(played, "raise")
    assert {rank: end.status for rank, end in found.items()} == {0: 3, 1: ExitCode.CRASH, 2: 3}
    assert max(end.after_s for end in found.values()) < CRASH_BOUND_S
    assert found[1].output.count("Traceback") == 1
    assert "stopped because" not in found[1].output
    for rank in (0, 2):
        assert "Traceback" not in found[rank].output
        line = line_of(found[rank], f"pretrain_gpt.py: rank {rank}: stopped because rank 1 (pipeline stage 1")
        assert "failed: ValueError: boom at sample 7" in line


def test_a_user_error_of_all_ranks_is_written_once_as_an_error(played: pathlib.Path) -> None:
    found = ends(played, "raise_everywhere")
    assert {end.status for end in found.values()} == {ExitCode.USER_ERROR}
    outputs = "".join(end.output for end in found.values())
    assert len(re.findall(r"rank \d: error: found a model of 3 layers; expected 6 layers", outputs)) == 1
    assert len(re.findall(r"rank \d: stopped because .* found a model of 3 layers", outputs)) == 2
    assert "Traceback" not in outputs


def test_a_collective_that_one_rank_misses_points_at_it(played: pathlib.Path) -> None:
    found = ends(played, "missed_collective")
    assert all(end.status not in (0, -99) for end in found.values())
    assert all("Timed out waiting" in end.output for end in found.values())
    assert "no error on rank(s) 1, where the others may be waiting" in found[1].output


def test_ctrl_c_on_one_rank_ends_all_as_interrupted(played: pathlib.Path) -> None:
    found = ends(played, "interrupt")
    assert {end.status for end in found.values()} == {ExitCode.INTERRUPTED}
    assert all("Traceback" not in end.output for end in found.values())
    assert "rank 1 (pipeline stage 1" in line_of(found[0], "pretrain_gpt.py: rank 0: stopped because")


def test_a_rank_that_never_comes_is_named(played: pathlib.Path) -> None:
    for rank, end in ends(played, "absent_last").items():
        assert end.status == ExitCode.USER_ERROR
        assert "found 2 of 3 ranks after 6 s; missing: rank(s) 2;" in line_of(end, f"pretrain_gpt.py: rank {rank}: ")
    (end,) = ends(played, "absent_first").values()
    assert end.status == ExitCode.USER_ERROR
    assert "rank 0 is missing" in line_of(end, "pretrain_gpt.py: rank 1: error:")
    assert end.output.count("\n") == 1


def test_a_held_interpreter_lock_is_no_loss_when_announced(played: pathlib.Path) -> None:
    for end in ends(played, "held_lock").values():
        assert (end.status, end.output) == (0, "went on\n")
        assert end.after_s > LONG_HOLD_S


def test_a_signal_to_one_rank_stops_all_after_the_same_iteration(played: pathlib.Path) -> None:
    found = ends(played, "signal")
    assert {end.status for end in found.values()} == {0}
    assert len({line_of(end, "SIGTERM received, leaving after iteration") for end in found.values()}) == 1
    assert all(end.after_s > 1.0 for end in found.values())  # nobody leaves before the slowest has saved


def test_places_and_seeds_follow_megatron(played: pathlib.Path) -> None:
    places = {
        rank: tuple(map(int, re.findall(r"(?:tp|pp|dp)_rank=(\d)", end.output)))
        for rank, end in ends(played, "places").items()
    }
    assert places == {0: (0, 0, 0), 1: (1, 0, 0), 2: (0, 1, 0), 3: (1, 1, 0)}
    seeds = [int(line_of(end, "seed").split()[1]) for end in ends(played, "places").values()]
    assert seeds == [1234, 1234, 1334, 1334]


def test_a_run_of_one_process_needs_no_port(played: pathlib.Path) -> None:
    end = ends(played, "alone")[0]
    assert end.status == 0
    assert "world_size=1" in end.output


def torchrun(port: int, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    return subprocess.Popen(
        [*command, str(port), "-m", "tests.distributed.fault_torchrun", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_under_torchruns_agent() -> None:
    """The agent hosts the store. A killed rank 0 is named; SIGTERM to the agent lets a save of seconds complete."""
    with held_port() as one_port, held_port() as other_port:
        killed, asked = torchrun(one_port, "kill"), torchrun(other_port, "wait")
        try:
            assert asked.stdout is not None
            seen = ""
            while "running" not in seen and (line := asked.stdout.readline()):
                seen += line
            asked.send_signal(signal.SIGTERM)
            killed_output, _ = killed.communicate(timeout=120)
            asked_output, _ = asked.communicate(timeout=120)
        finally:
            killed.kill()
            asked.kill()
    assert killed.returncode != 0
    assert "rank 1: stopped because rank 0 (" in killed_output
    assert asked_output.count("saved\n") == 2, asked_output
    assert len(set(re.findall(r"SIGTERM received, leaving after iteration (\d+)", asked_output))) == 1
