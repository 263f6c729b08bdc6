import json
import os
import pathlib
from collections.abc import Callable

import pytest

from megatron.pretrain.checkpoint.record import RECORD_NAME, check_contents, check_identity, check_sizes, read_record
from overlap_recompute.plan.errors import CheckpointError
from tests.unit.checkpoint.conftest import MakeCheckpoint


def test_a_record_reads_back(tmp_path: pathlib.Path, make_checkpoint: MakeCheckpoint) -> None:
    record = make_checkpoint(tmp_path / "c", 20, random_streams={"torch": 5056}, optimizer={"distributed": True})
    read = read_record(tmp_path / "c")
    assert read == record
    assert read.iteration == 20
    check_sizes(tmp_path / "c", read)
    check_contents(tmp_path / "c", read, list(read.files))


BROKEN: dict[str, Callable[[pathlib.Path], object]] = {
    "absent": os.remove,
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: os.truncate(path, 50),
    "binary": lambda path: path.write_bytes(bytes(range(128, 256))),
    "a list": lambda path: path.write_text("[]"),
    "a field missing": lambda path: rewrite(path, "layout", None),
    "a field of another type": lambda path: rewrite(path, "files", ["common.pt"]),
    "no iteration": lambda path: rewrite(path, "progress", {}),
    "an iteration of another type": lambda path: rewrite(path, "progress", {"iteration": "20"}),
}


def rewrite(path: pathlib.Path, field: str, value: object) -> None:
    content = json.loads(path.read_text())
    content[field] = value
    if value is None:
        del content[field]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_record_is_named(how: str, tmp_path: pathlib.Path, make_checkpoint: MakeCheckpoint) -> None:
    make_checkpoint(tmp_path / "c")
    BROKEN[how](tmp_path / "c" / RECORD_NAME)
    with pytest.raises(CheckpointError, match="run.json"):
        read_record(tmp_path / "c")


def test_a_later_format_is_refused(tmp_path: pathlib.Path, make_checkpoint: MakeCheckpoint) -> None:
    make_checkpoint(tmp_path / "c", format_version=2)
    with pytest.raises(CheckpointError, match="found format 2.*expected format 1"):
        read_record(tmp_path / "c")


def test_damaged_files_are_named(tmp_path: pathlib.Path, make_checkpoint: MakeCheckpoint) -> None:
    folder = tmp_path / "c"
    record = make_checkpoint(folder)
    content = bytearray((folder / "__0_0.distcp").read_bytes())
    content[77] ^= 1
    (folder / "__0_0.distcp").write_bytes(content)
    check_sizes(folder, record)
    check_contents(folder, record, ["common.pt"])
    with pytest.raises(CheckpointError, match="__0_0.distcp with a changed content"):
        check_contents(folder, record, list(record.files))
    os.truncate(folder / "common.pt", 5)
    with pytest.raises(CheckpointError, match="common.pt with 5 bytes; expected 6 bytes"):
        check_sizes(folder, record)
    os.remove(folder / "common.pt")
    with pytest.raises(CheckpointError, match="common.pt: No such file"):
        check_sizes(folder, record)


def test_identity_is_compared_field_by_field(tmp_path: pathlib.Path, make_checkpoint: MakeCheckpoint) -> None:
    identity = {"num_layers": 4, "rotary": {"base": 10000}, "layout": [1, 2], "swiglu": True}
    record = make_checkpoint(tmp_path / "c", identity=identity)
    check_identity(record, {**identity, "layout": (1, 2)}, tmp_path)
    other = {"num_layers": 8, "rotary": {"base": 500}, "layout": (1, 2), "experts": 4}
    with pytest.raises(CheckpointError) as caught:
        check_identity(record, other, tmp_path)
    assert "experts nothing, num_layers 4, rotary.base 10000, swiglu True" in caught.value.found
    assert caught.value.expected == "experts 4, num_layers 8, rotary.base 500, swiglu nothing"
    assert "layout" not in caught.value.found


def test_many_differences_are_counted(tmp_path: pathlib.Path, make_checkpoint: MakeCheckpoint) -> None:
    record = make_checkpoint(tmp_path / "c", identity={f"field{i}": i for i in range(9)})
    with pytest.raises(CheckpointError, match="and 4 more fields"):
        check_identity(record, {}, tmp_path)
