"""One run at a time: the lock on a --save folder."""

import fcntl
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from megatron.pretrain.checkpoint.folder_lock import LOCK_NAME, FolderLock
from overlap_recompute.plan.errors import CheckpointError

HOLDER = """
import fcntl, os, sys, time
stream = open(sys.argv[1], "ab")
fcntl.lockf(stream, fcntl.LOCK_EX)
if os.fork() == 0:  # as a data loader's worker, which outlives its run by seconds
    time.sleep(60)
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_gone_however_it_ended(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "new" / "checkpoints"
    root.mkdir(parents=True)
    command = [sys.executable, "-c", HOLDER, str(root / LOCK_NAME)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            second = FolderLock(root, wait_s=0.1)
            with pytest.raises(CheckpointError, match="another run that saves into .*checkpoints .*--save"):
                second.acquire()
            other.kill()
            other.wait(10)
            FolderLock(root, wait_s=5.0).acquire()
        finally:
            os.killpg(other.pid, signal.SIGKILL)


def test_the_folder_is_made_and_free_again_after_the_run(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "new" / "checkpoints"
    lock = FolderLock(root)
    lock.acquire()
    probe = f"import fcntl; fcntl.lockf(open({str(root / LOCK_NAME)!r}, 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 1
    lock.release()
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    FolderLock(tmp_path).acquire()
    assert "cannot be locked (No locks available)" in caplog.text
