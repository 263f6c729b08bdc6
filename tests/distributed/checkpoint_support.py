"""What the checkpoint scenarios share: building, saving, loading and judging runs on every rank."""

import functools
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.distributed as dist

from tests.distributed.checkpoint_model import Setup, all_equal, build, digest, train  # isort: skip

from megatron.core import dist_checkpointing

from megatron.pretrain.checkpoint import shard_writer
from megatron.pretrain.checkpoint.manager import CheckpointManager
from megatron.pretrain.config.groups.checkpoint import CheckpointOptions
from megatron.pretrain.training.state import Progress, TrainingState
from overlap_recompute.plan.errors import CheckpointError

IDENTITY = {"num_layers": 4, "hidden_size": 32, "rotary": {"base": 10000}}
TP2_PP2 = Setup(tensor=2, pipeline=2)
TP2_SHARDED = Setup(tensor=2, bf16=True, distributed_optimizer=True)
LIMIT_S = 60.0


def manager(folder: pathlib.Path, identity: dict | None = None, **flags: object) -> CheckpointManager:
    options = CheckpointOptions(**{"save": str(folder), "load": str(folder), **flags})  # type: ignore[arg-type]
    return CheckpointManager(options, model_identity=identity or IDENTITY, run_config={"seed": 1}, seed=1)


def trained(setup: Setup, iterations: int = 2) -> TrainingState:
    state = build(setup)
    train(state, iterations)
    return state


def resumed(setup: Setup, folder: pathlib.Path, **flags: object) -> TrainingState:
    """A run with other random weights that then loads."""
    state = build(setup.but(seed=99))
    progress = manager(folder, **flags).load(state)
    assert progress is not None
    state.progress = progress
    return state


def saved_tensors(folder: pathlib.Path, iteration: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint but random states, read by the stock library."""
    tensors = dist_checkpointing.load_plain_tensors(str(folder / f"iter_{iteration:07d}"))
    return {k: v for k, v in tensors.items() if isinstance(v, torch.Tensor) and not k.startswith("rng_state/")}


def assert_same_content(one: pathlib.Path, other: pathlib.Path, iteration: int = 2) -> None:
    left, right = saved_tensors(one, iteration), saved_tensors(other, iteration)
    assert left.keys() == right.keys()
    assert len(left) > 10
    differing = [key for key in left if not torch.equal(left[key], right[key])]
    assert not differing, differing


def refused(action: Callable[[], object], *words: str) -> str:
    """Every rank must get the same CheckpointError, soon, with these words in it."""
    started_s = time.monotonic()
    try:
        action()
    except CheckpointError as error:
        message = str(error)
    else:
        raise AssertionError("no CheckpointError")
    assert time.monotonic() - started_s < LIMIT_S
    assert all_equal(message) == [message] * dist.get_world_size()
    assert all(word in message for word in words), message
    return message


def names(folder: pathlib.Path) -> list[str]:
    dist.barrier()
    return sorted(path.name for path in folder.iterdir())


def resume_is_exact(setup: Setup, folder: pathlib.Path, **flags: object) -> None:
    """Train 2, save, train 2 more; a second run loads and trains 2: everything must agree bit for bit."""
    undisturbed = digest(trained(setup, 4))
    state = trained(setup)
    writer = manager(folder, **flags)
    writer.save(state)
    losses = train(state, 2)
    writer.close()
    assert digest(state) == undisturbed, "saving changed the run"
    again = resumed(setup, folder)
    assert again.progress == Progress(iteration=2, consumed_train_samples=8)
    assert train(again, 2) == losses
    assert digest(again) == digest(state)


@contextmanager
def recorded(logger: str) -> Iterator[list[str]]:
    """What is logged meanwhile."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    target, level = logging.getLogger(logger), logging.getLogger(logger).level
    target.addHandler(handler)
    target.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        target.removeHandler(handler)
        target.setLevel(level)


@contextmanager
def disk_error(rank: int, after: str) -> Iterator[None]:
    """Let one rank's write fail, before or after it has reached the disk."""
    stock = shard_writer._Writer.write_data

    @functools.wraps(stock)
    def write_data(self: object, *args: object) -> object:
        result = stock(self, *args) if after == "written" else None  # type: ignore[arg-type]
        if dist.get_rank() == rank:
            raise OSError(28, "No space left on device", "/somewhere")
        return result or stock(self, *args)  # type: ignore[arg-type]

    with mock.patch.object(shard_writer._Writer, "write_data", write_data):
        yield


@contextmanager
def slow_disk(seconds: float) -> Iterator[None]:
    """Let every write that is started meanwhile begin late."""
    stock = shard_writer._Writer.write_data

    def write_data(self: object, *args: object) -> object:
        time.sleep(seconds)
        return stock(self, *args)  # type: ignore[arg-type]

    with mock.patch.object(shard_writer._Writer, "write_data", write_data):
        yield
