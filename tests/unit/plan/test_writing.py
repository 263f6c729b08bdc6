"""Where files that appear whole land: in place of a file, behind a link, in a device or a pipe."""

import os
import pathlib
import stat
import threading

import pytest

from overlap_recompute.plan.codec import FileError, write_record
from overlap_recompute.plan.files import write_bytes
from tests.unit.plan.samples import sample_plan, sample_profile


def test_a_pipe_is_written_to_and_stays(tmp_path: pathlib.Path) -> None:
    """As a device does: a file in place of /dev/null would break the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_bytes(pipe, b"a plan")
    reader.join(timeout=10)
    assert found == [b"a plan"] and stat.S_ISFIFO(pipe.stat().st_mode) and list(tmp_path.iterdir()) == [pipe]


def test_a_link_stays_and_its_file_is_replaced(tmp_path: pathlib.Path) -> None:
    (tmp_path / "here").mkdir()
    target, link = tmp_path / "here" / "file", tmp_path / "link"
    link.symlink_to(target)
    for content in (b"old", b"new"):
        write_bytes(link, content)
        assert link.is_symlink() and target.read_bytes() == content
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "here", target, link]


def test_a_folder_is_no_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileError, match=rf"the file {tmp_path}, which cannot be written \(Is a directory\)"):
        write_record(tmp_path, sample_plan(sample_profile()))
    assert list(tmp_path.iterdir()) == []
