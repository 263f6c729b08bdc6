"""The platform goes first: the modules under test import megatron.core."""

import json
import pathlib
from collections.abc import Callable

import pytest

from megatron.pretrain.platform import install_platform

install_platform("gloo")

from megatron.pretrain.checkpoint.record import RECORD_NAME, RunRecord, checksum, list_files  # noqa: E402

MakeCheckpoint = Callable[..., RunRecord]


@pytest.fixture
def make_checkpoint() -> MakeCheckpoint:
    """Write a complete checkpoint of two small files into a folder and return its record."""

    def make(folder: pathlib.Path, iteration: int = 20, **changes: object) -> RunRecord:
        folder.mkdir(parents=True)
        (folder / "__0_0.distcp").write_bytes(b"shard" * 100)
        (folder / "common.pt").write_bytes(b"common")
        files = list_files(folder)
        fields = {
            "progress": {"iteration": iteration}, "identity": {"num_layers": 4}, "config": {}, "layout": {},
            "optimizer": None, "random_streams": None, "versions": {}, "saved_at": "2026-01-01T00:00:00+00:00",
            "files": files, "checksums": {name: checksum(folder / name) for name in files}, **changes,
        }  # fmt: skip
        record = RunRecord(**fields)  # type: ignore[arg-type]
        (folder / RECORD_NAME).write_text(record.to_json())
        assert json.loads(record.to_json())["progress"]["iteration"] == iteration
        return record

    return make
