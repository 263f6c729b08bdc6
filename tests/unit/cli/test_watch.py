"""The subcommand as a user calls it: pictures, JSON, files that are not there, and a real terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlap_recompute.cli.main import main
from tests.unit.cli.watch_support import event_line, run_line, sample_line, write_run

ROOT = Path(__file__).parents[3]
HALF = [run_line(), *(sample_line(n) for n in range(1, 21))]
DONE = [*HALF, sample_line(100)]


def test_one_picture_when_nobody_watches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, HALF)
    assert main(["watch", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"running, last line \d+ s ago$", text.splitlines()[0])
    assert "20/100" in text
    assert "\x1b" not in text
    assert main(["watch", str(tmp_path / "metrics.jsonl"), "--once", "--width", "60"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_the_status_says_whether_an_alarm_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path, HALF)
    os.utime(path, (time.time() - 90, time.time() - 90))
    assert main(["watch", str(tmp_path)]) == 1
    assert re.search(r"ALARM stalled: nothing for (9|1\d)\d s", capsys.readouterr().out)
    assert main(["watch", str(tmp_path), "--stall-factor", "10000"]) == 0


def test_malformed_lines_are_counted_and_half_a_line_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path, [*HALF, b"{", b"\x00\xff", b""])
    with path.open("ab") as stream:
        stream.write(sample_line(21)[:50])
    assert main(["watch", str(tmp_path), "--json", "--once"]) == 0
    update = json.loads(capsys.readouterr().out)
    assert update["unreadable_lines"] == 3
    assert update["latest"]["iteration"] == 20


def test_json_is_strict_also_when_the_loss_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, [*HALF, sample_line(21, loss="nan")])
    assert main(["watch", str(tmp_path), "--json", "--once"]) == 1
    update = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert (update["schema"], update["state"], update["latest"]["loss"]) == ("watch/1", "running", "nan")
    assert [alarm["name"] for alarm in update["alarms"]] == ["loss_not_finite"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["nowhere"], "found no folder and no file nowhere; expected a run's folder"),
        (["."], "found no metrics file at metrics.jsonl"),
        (["other.jsonl"], "found the file other.jsonl, whose first line does not describe a run"),
        (["run.jsonl", "--alarm-threshold", "nan"], "found --alarm-threshold nan; expected a number of at least 0.001"),
        (["run.jsonl", "--alarm-window", "0"], "found --alarm-window 0; expected a whole number of at least 1"),
        (["run.jsonl", "--stall-factor", "x"], "found --stall-factor x; expected a number of at least 1"),
        (["run.jsonl", "--interval-s", "1e300"], "found --interval-s 1e300; expected a number of 0.05 to 86400"),
        (["run.jsonl", "--width", "10"], "found --width 10; expected a whole number of at least 40"),
        (["run.jsonl", "--prometheus-port", "70000"], "found --prometheus-port 70000; expected at most 65535"),
    ],
)
def test_faults_are_one_sentence(
    words: Sequence[str],
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.jsonl").write_text("something else\n")
    Path("run.jsonl").write_bytes(run_line() + b"\n")
    assert main(["watch", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"overlap-recompute: {found}")
    assert captured.err.count("\n") == 1


def between_looks(monkeypatch: pytest.MonkeyPatch, happenings: Iterator[None]) -> None:
    """Let something happen, one step of a generator, while the watch sleeps between two looks."""
    monkeypatch.setattr("overlap_recompute.cli.watch.time.sleep", lambda interval_s: next(happenings))


def test_until_done_follows_a_run_that_starts_later_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"

    def train() -> Iterator[None]:
        yield
        write_run(tmp_path, HALF)
        yield
        (tmp_path / "new").write_bytes(
            b"\n".join([*HALF[:11], run_line(10), event_line(10, "resumed", "again")]) + b"\n"
        )
        os.replace(tmp_path / "new", path)
        yield
        for iteration in (11, 100):
            with path.open("ab") as stream:
                stream.write(sample_line(iteration) + b"\n")
            yield

    between_looks(monkeypatch, train())
    status = main(["watch", str(tmp_path), "--json", "--until-done", "--interval-s", "0.05"])
    updates = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    seen = [(each["state"], (each["latest"] or {}).get("iteration"), each["starts"]) for each in updates]
    assert status == 0
    assert seen == [
        ("no file", None, 0),
        ("running", 20, 1),
        ("starting", 10, 2),
        ("running", 11, 2),
        ("done", 100, 2),
    ]


def test_in_a_log_changes_are_lines_and_the_picture_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path, HALF)

    def train() -> Iterator[None]:
        yield
        path.write_bytes(path.read_bytes() + sample_line(100) + b"\n")
        yield

    between_looks(monkeypatch, train())
    assert main(["watch", str(tmp_path), "--until-done", "--interval-s", "0.05"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "running: no alarm"
    assert lines[1].endswith("  done")
    assert lines[-1] == "no alarm"


@contextmanager
def terminal(
    words: Sequence[str], **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[bytes], bytes]]]:
    """The program on a terminal of 80 x 24, and a function that reads from it until some bytes have come."""
    mine, theirs = pty.openpty()
    names = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PYTHONUTF8": "1", **environment}
    names = {name: value for name, value in names.items() if value}
    process = subprocess.Popen(
        [sys.executable, "-m", "overlap_recompute", "watch", *words],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=names,
        start_new_session=True,
    )
    os.close(theirs)
    held = bytearray()

    def until(wanted: bytes) -> bytes:
        deadline_s = time.monotonic() + 120
        while wanted not in held:
            assert time.monotonic() < deadline_s, held.decode(errors="replace")
            if select.select([mine], [], [], 0.2)[0]:
                try:
                    held.extend(os.read(mine, 65536))
                except OSError:  # the other side has closed
                    break
        assert wanted in held, held.decode(errors="replace")
        end = held.index(wanted) + len(wanted)
        text = bytes(held[:end])
        del held[:end]
        return text

    try:
        yield process, until
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(mine)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_on_a_terminal_the_picture_is_redrawn_in_place_and_the_cursor_comes_back(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    path = write_run(tmp_path, HALF)
    with terminal([str(tmp_path), "--interval-s", "0.05"], NO_COLOR="") as (process, until):
        start = until(b"20/100")
        assert b"\x1b[?1049h\x1b[?25l" in start
        assert b"\x1b[1m" in start  # the title is bold
        with path.open("ab") as stream:
            stream.write(sample_line(21) + b"\n")
        redrawn = until(b"21/100")
        assert b"\x1b[H" in redrawn  # from the top again, over the old picture
        assert b"\x1b[2J" not in redrawn
        process.send_signal(number)
        until(b"\x1b[?25h\x1b[?1049l")
        left = until(b"no alarm")
        assert b"21/100" in left  # the last picture stays on the ordinary screen
        assert b"\x1b[?25l" not in left
        assert process.wait(timeout=120) == status
        assert b"Traceback" not in left


def test_no_color_is_respected(tmp_path: Path) -> None:
    write_run(tmp_path, DONE)
    with terminal([str(tmp_path), "--until-done"], NO_COLOR="1") as (process, until):
        shown = until(b"\x1b[?1049l") + until(b"no alarm")
        assert process.wait(timeout=120) == 0
    assert b"100/100" in shown
    assert b"m" not in {shown[at + 3 : at + 4] for at in range(len(shown)) if shown[at : at + 2] == b"\x1b["}
    assert b"\x1b[0m" not in shown
    assert b"\x1b[1m" not in shown


def test_a_dumb_terminal_gets_one_plain_picture(tmp_path: Path) -> None:
    write_run(tmp_path, HALF)
    with terminal([str(tmp_path)], TERM="dumb") as (process, until):
        shown = until(b"no alarm")
        assert process.wait(timeout=120) == 0
    assert b"\x1b" not in shown
