import logging
import os
import pathlib
import stat

import pytest

from megatron.pretrain.checkpoint import directory as directory_module
from megatron.pretrain.checkpoint.directory import TRACKER_NAME, CheckpointDirectory, replace_text
from overlap_recompute.plan.errors import CheckpointError
from tests.unit.checkpoint.conftest import MakeCheckpoint


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> CheckpointDirectory:
    return CheckpointDirectory(root=tmp_path / "save")


def save(directory: CheckpointDirectory, iteration: int, text: str = "new") -> None:
    staging = directory.stage(iteration)
    (staging / "run.json").write_text(text)
    directory.publish(staging, iteration)


def names(directory: CheckpointDirectory) -> list[str]:
    return sorted(path.name for path in directory.root.iterdir())


def test_layout_is_that_of_megatron_lm(directory: CheckpointDirectory) -> None:
    save(directory, 20)
    save(directory, 12345678)
    assert names(directory) == ["iter_0000020", "iter_12345678", "latest_checkpointed_iteration.txt"]
    assert (directory.root / TRACKER_NAME).read_text() == "12345678"
    assert directory.iterations() == [20, 12345678]
    assert directory.find(None) == 12345678
    assert directory.find(20) == 20


def test_an_empty_or_absent_folder_has_nothing_to_load(directory: CheckpointDirectory) -> None:
    assert directory.find(None) is None
    directory.root.mkdir()
    assert directory.find(None) is None


def test_what_is_not_complete_is_not_seen(directory: CheckpointDirectory) -> None:
    directory.stage(20)
    (directory.root / "iter_0000010").mkdir()
    (directory.root / "iter_0000010" / "__0_0.distcp").touch()
    (directory.root / "iter_9").mkdir()
    assert directory.iterations() == []
    assert directory.find(None) is None


def test_a_missing_checkpoint_is_named_and_the_newest_offered(directory: CheckpointDirectory) -> None:
    save(directory, 10)
    save(directory, 20)
    (directory.root / TRACKER_NAME).write_text("30")
    with pytest.raises(CheckpointError, match=r"iteration 30 in latest_check.*\[10, 20\].*--ckpt-step 20"):
        directory.find(None)
    with pytest.raises(CheckpointError, match="found --ckpt-step 15"):
        directory.find(15)


@pytest.mark.parametrize("text", ["", "release", "-3", "1 2", "²"])
def test_a_tracker_with_something_else_is_refused(directory: CheckpointDirectory, text: str) -> None:
    save(directory, 10)
    (directory.root / TRACKER_NAME).write_text(text)
    with pytest.raises(CheckpointError, match="--ckpt-step 10"):
        directory.find(None)


def test_the_newest_is_taken_without_a_tracker_and_mentioned_behind_one(
    directory: CheckpointDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    save(directory, 10)
    save(directory, 20)
    (directory.root / TRACKER_NAME).write_text("10")
    assert directory.find(None) == 10
    assert "iteration 20 is complete too" in caplog.text
    (directory.root / TRACKER_NAME).unlink()
    assert directory.find(None) == 20
    assert "has no latest_checkpointed_iteration.txt" in caplog.text


def test_a_save_of_the_same_iteration_replaces_it(directory: CheckpointDirectory) -> None:
    save(directory, 20, "old")
    save(directory, 20, "new")
    assert names(directory) == ["iter_0000020", TRACKER_NAME]
    assert (directory.folder(20) / "run.json").read_text() == "new"


def test_dead_saves_are_swept_and_complete_ones_kept(
    directory: CheckpointDirectory, make_checkpoint: MakeCheckpoint
) -> None:
    save(directory, 10)
    make_checkpoint(directory.root / "iter_0000020.saving-01234567")
    make_checkpoint(directory.root / "iter_0000010.replaced-01234567", 10)
    make_checkpoint(directory.root / "iter_0000030.replaced-01234567", 30)
    (directory.root / f".{TRACKER_NAME}.01234567.tmp").touch()
    (directory.root / "iter_0000040.saving-mine").mkdir()
    (directory.root / "notes").mkdir()
    staging = directory.stage(50)
    kept = ["iter_0000010", "iter_0000030", "iter_0000040.saving-mine", staging.name, TRACKER_NAME, "notes"]
    assert names(directory) == sorted(kept)
    assert directory.iterations() == [10, 30]


def test_recover_touches_nothing_else(directory: CheckpointDirectory, make_checkpoint: MakeCheckpoint) -> None:
    directory.recover()
    make_checkpoint(directory.root / "iter_0000020.saving-01234567")
    before = names(directory)
    directory.recover()
    assert names(directory) == before


def test_staging_names_are_never_used_again(directory: CheckpointDirectory) -> None:
    assert directory.stage(20) != directory.stage(20)


def test_text_is_replaced_whole_or_not_at_all(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_text(path, "old")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_everything_is_on_disk_before_it_is_named(
    directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that makes a power cut harmless: staged entries, rename, the folder's entries, tracker."""
    staging = directory.stage(20)
    events: list[str] = []
    rename, sync, replace = pathlib.Path.rename, directory_module.sync_folder, os.replace
    monkeypatch.setattr(pathlib.Path, "rename", lambda *a: (events.append("rename"), rename(*a))[1])
    monkeypatch.setattr(directory_module, "sync_folder", lambda p: (events.append(f"sync {p.name}"), sync(p))[1])
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("tracker"), replace(*a))[1])
    directory.publish(staging, 20)
    assert events == [f"sync {staging.name}", "rename", "sync save", "tracker", "sync save"]
