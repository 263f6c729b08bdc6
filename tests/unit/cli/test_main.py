"""The command `overlap-recompute`: subcommands, errors, start-up."""

import importlib
import os
import resource
import subprocess
import sys
from collections.abc import Sequence

import pytest

from overlap_recompute import __version__
from overlap_recompute.cli.commands import COMMANDS, Command
from overlap_recompute.cli.main import main
from overlap_recompute.cli.parser import new_parser

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
SCHEDULE = ("schedule", "--pp", "4", "--vpp", "2", "--microbatches", "8")


def run_program(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "overlap_recompute", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def test_the_overview_names_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for entry in COMMANDS:
        assert f"  {entry.name}" in text
        assert entry.summary in text


def test_without_a_subcommand_the_overview_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: overlap-recompute SUBCOMMAND" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"overlap-recompute {__version__}\n"


@pytest.mark.parametrize("name", [entry.name for entry in COMMANDS])
def test_every_subcommand_teaches_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: overlap-recompute {name}" in text
    assert "--json" in text


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_flag_has_a_help_text(entry: object) -> None:
    command: Command = importlib.import_module(entry.module).COMMAND  # type: ignore[attr-defined]
    parser = new_parser("x", command.description, command.epilog)
    command.add_arguments(parser)
    assert [action.dest for action in parser._actions if not action.help] == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["shedule"], "write 'schedule' if that was meant"),
        (["frobnicate"], "expected one of "),
        (["schedule", "--pps", "2"], "unrecognized arguments: --pps 2"),
        (["schedule", "--pp"], "argument --pp: expected one argument"),
        (["doctor", "now"], "unrecognized arguments: now"),
    ],
)
def test_a_word_that_cannot_be_placed_is_one_sentence(
    words: Sequence[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("overlap-recompute: found ")
    assert captured.err.count("\n") == 1
    assert found in captured.err


def test_schedule_starts_quickly_and_loads_nothing_heavy() -> None:
    cpu_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run_program(*SCHEDULE)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # CPU time of the best of three, with room for a slow machine: torch alone takes more than a second.
    assert min(cpu_s) < 0.6
    heavy = "import sys; from overlap_recompute.cli.main import main; main(sys.argv[1:]); "
    heavy += "sys.exit(str({'torch', 'numpy', 'scipy', 'megatron'} & set(sys.modules) or ''))"
    done = subprocess.run(
        [sys.executable, "-c", heavy, *SCHEDULE], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stderr.strip() == ""


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "overlap_recompute", "schedule", "--pp", "8", "--microbatches", "200"],
            cwd=ROOT,
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=200,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_output_without_room_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "overlap_recompute", *SCHEDULE],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=200, check=False,
        )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "found an output that cannot be written (No space left on device)" in done.stderr
