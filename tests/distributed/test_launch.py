"""Forked ranks are to the tests what new interpreters are: arguments, environment, exit status, signals, their end."""

import pathlib
import signal
import sys

import pytest

from tests.distributed.conftest import report
from tests.distributed.launch import RankProcesses, run_ranks
from tests.distributed.linklab_support import is_running, wait_for

FORKED_AND_NEW = pytest.mark.parametrize("fresh", [False, True], ids=["forked", "new"])


def program(folder: pathlib.Path, text: str) -> list[str]:
    """The command of a little program."""
    path = folder / "program.py"
    path.write_text(f"import atexit, os, signal, sys, time\n{text}\n")
    return [sys.executable, str(path), "one", "two words"]


@FORKED_AND_NEW
def test_a_rank_has_its_arguments_and_environment(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    monkeypatch.setenv("SET_LATER", "yes")
    monkeypatch.delenv("PATH")
    command = program(
        tmp_path,
        "atexit.register(print, 'at exit')\n"
        "names = 'RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS SET_LATER GIVEN PATH'.split()\n"
        "print(sys.argv, [os.environ.get(name) for name in names], __name__, sys.stdin.read() == '')\n"
        "sys.stderr.write('told\\n')",
    )
    results = run_ranks(command, 2, env={"GIVEN": "more"}, fresh=fresh)
    for rank, result in enumerate(results):
        assert result.returncode == 0, report(results)
        environ = [str(rank), str(rank), "2", "127.0.0.1", "1", "yes", "more", None]
        said = {f"{command[1:]} {environ} __main__ True", "told", "at exit"}
        assert set(result.output.splitlines()) == said, report(results)


@FORKED_AND_NEW
@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("sys.exit(7)", 7, ""),
        ("raise ValueError('a bad day')", 1, "ValueError: a bad day"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11, ""),
        ("os._exit(3)", 3, ""),
    ],
)
def test_its_end_is_told(tmp_path: pathlib.Path, text: str, status: int, said: str, fresh: bool) -> None:
    (result,) = run_ranks(program(tmp_path, text), 1, fresh=fresh)
    assert result.returncode == status and said in result.output, report([result])


def test_all_end_with_the_block_and_their_children_too(tmp_path: pathlib.Path) -> None:
    text = "os.fork()\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
    with RankProcesses(program(tmp_path, text), 2) as ranks:
        assert wait_for(lambda: all(ranks.output(rank).count("\n") == 2 for rank in range(2)))
        pids = [int(pid) for rank in range(2) for pid in ranks.output(rank).split()]
        assert all(is_running(pid) for pid in pids)
        ranks.processes[0].send_signal(signal.SIGTERM)
        assert ranks.processes[0].wait(60) == -signal.SIGTERM
        assert ranks.processes[1].poll() is None
        assert [result.returncode for result in ranks.wait(0.1)] == [-signal.SIGTERM, -signal.SIGKILL]
    assert wait_for(lambda: not any(is_running(pid) for pid in pids))
