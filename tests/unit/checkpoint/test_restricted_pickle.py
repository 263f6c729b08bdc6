import collections
import io
import os
import pathlib
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing import ShardedTensor
from torch.distributed.checkpoint import FileSystemReader, save
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from megatron.pretrain.checkpoint import shard_reader
from megatron.pretrain.checkpoint.restricted_pickle import METADATA_NAME, read_metadata
from megatron.pretrain.checkpoint.shard_reader import open_checkpoint
from overlap_recompute.plan.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Evil:
    """Unpickling this creates a file."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def checkpoint(tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkpoint as torch itself writes it."""
    folder = tmp_path / "checkpoint"
    tensors = {"a": torch.arange(4), "b": torch.ones(2, 3, dtype=torch.bfloat16)}
    save(tensors, checkpoint_id=folder, no_dist=True)
    metadata = FileSystemReader(folder).read_metadata()
    metadata.storage_meta = None  # torch keeps the path there; this trainer's writer does not
    with (folder / METADATA_NAME).open("wb") as stream:
        pickle.dump(metadata, stream)
    torch.save({"iteration": 1}, folder / "common.pt")
    return folder


def rewrite(folder: pathlib.Path, content: object) -> None:
    (folder / METADATA_NAME).write_bytes(pickle.dumps(content))


def test_an_index_of_torch_is_read(checkpoint: pathlib.Path) -> None:
    metadata = read_metadata(checkpoint)
    assert metadata.state_dict_metadata.keys() == {"a", "b"}
    assert metadata.state_dict_metadata["b"].properties.dtype is torch.bfloat16
    assert metadata == pickle.loads((checkpoint / METADATA_NAME).read_bytes())  # noqa: S301 (made above)


@pytest.mark.parametrize("where", ["whole", "inside"])
def test_a_hostile_index_runs_nothing(where: str, checkpoint: pathlib.Path, tmp_path: pathlib.Path) -> None:
    evil = Evil(tmp_path / "made")
    rewrite(checkpoint, evil if where == "whole" else Metadata(state_dict_metadata={}, planner_data=evil))
    with pytest.raises(CheckpointError, match="refuses posix.mkdir"):
        read_metadata(checkpoint)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [
        collections.OrderedDict(),  # an innocent class that does not belong there
        {"a": 1},
        Metadata(state_dict_metadata={}),
        torch.float32,
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"ctorch\nload\n(S'x'\ntR.",
        b"ctorch.serialization\nos.system\n(S'true'\ntR.",
        b"",
    ],
)
def test_anything_else_is_refused(content: object, checkpoint: pathlib.Path) -> None:
    data = content if isinstance(content, bytes) else pickle.dumps(content)
    (checkpoint / METADATA_NAME).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"\.metadata with an unusable content"):
        read_metadata(checkpoint)


def test_every_cut_index_is_refused(checkpoint: pathlib.Path) -> None:
    data = (checkpoint / METADATA_NAME).read_bytes()
    for length in range(0, len(data), 37):
        (checkpoint / METADATA_NAME).write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_metadata(checkpoint)


def test_an_index_may_not_point_out_of_the_checkpoint(checkpoint: pathlib.Path) -> None:
    files = [path.name for path in checkpoint.iterdir()]
    assert open_checkpoint(checkpoint, files).common == {"iteration": 1}
    metadata = read_metadata(checkpoint)
    next(iter(metadata.storage_data.values())).relative_path = "../secret"
    rewrite(checkpoint, metadata)
    with pytest.raises(CheckpointError, match="points to '../secret'"):
        open_checkpoint(checkpoint, files)


def test_an_index_decides_neither_what_is_a_tensor_nor_its_shape(checkpoint: pathlib.Path) -> None:
    opened = open_checkpoint(checkpoint, [path.name for path in checkpoint.iterdir()])
    wanted = {key: ShardedTensor.from_rank_offsets(key, torch.zeros(4)) for key in ("a", "b", "optimizer.state.c")}
    shard_reader._check_contents([wanted["a"]], opened)
    with pytest.raises(CheckpointError, match=r"shape \(2, 3\) for b in .*expected shape \(4,\).*model flags"):
        shard_reader._check_contents([wanted["b"]], opened)
    with pytest.raises(CheckpointError, match=r"nothing for optimizer.state.c.*--no-load-optim"):
        shard_reader._check_contents([wanted["optimizer.state.c"]], opened)
    opened.metadata.state_dict_metadata["a"] = BytesStorageMetadata()
    with pytest.raises(CheckpointError, match="an object for a in"):
        shard_reader._check_contents([wanted["a"]], opened)


def test_a_hostile_common_part_runs_nothing(checkpoint: pathlib.Path, tmp_path: pathlib.Path) -> None:
    torch.save({"iteration": Evil(tmp_path / "made")}, checkpoint / "common.pt")
    with pytest.raises(CheckpointError, match=r"common\.pt with an unusable content"):
        open_checkpoint(checkpoint, [path.name for path in checkpoint.iterdir()])
    assert not (tmp_path / "made").exists()


def test_a_hostile_object_runs_nothing(tmp_path: pathlib.Path) -> None:
    """What torch's own planner would unpickle without restrictions."""
    planner = shard_reader._Planner(flatten_state_dict=False)
    planner.state_dict = {}
    item = SimpleNamespace(dest_index=SimpleNamespace(fqn="object"))
    for content, allowed in ((torch.ones(2), True), (Evil(tmp_path / "made"), False)):
        stream = io.BytesIO()
        torch.save([content], stream)
        stream.seek(0)
        if allowed:
            planner.load_bytes(item, stream)
            assert torch.equal(planner.state_dict["object"][0], torch.ones(2))
        else:
            with pytest.raises(pickle.UnpicklingError):
                planner.load_bytes(item, stream)
    assert not (tmp_path / "made").exists()
