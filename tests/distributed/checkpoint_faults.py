"""Scenarios: disks that fail, files that are damaged, checkpoints that do not fit, and what the flags choose."""

import functools
import os
import pathlib
import shutil
from collections.abc import Callable
from unittest import mock

import torch
import torch.distributed as dist

from tests.distributed.checkpoint_model import build, digest, train  # isort: skip
from megatron.pretrain.checkpoint import random_state, shard_writer
from megatron.pretrain.checkpoint.manager import CheckpointManager
from megatron.pretrain.training.state import Progress, TrainingState
from tests.distributed.checkpoint_support import (
    IDENTITY,
    TP2_PP2,
    TP2_SHARDED,
    disk_error,
    manager,
    names,
    recorded,
    refused,
    resumed,
    saved_tensors,
    trained,
)

TRACKER = "latest_checkpointed_iteration.txt"


def disk_errors(folder: pathlib.Path, tmpfs: str) -> None:
    state = trained(TP2_PP2)
    manager(folder).save(state)
    good = digest(state)
    train(state, 1)
    for flags in ({}, {"async_save": True}):
        writer = manager(folder, **flags)
        for rank in (0, 3):
            with disk_error(rank, "written" if flags else "nothing"):
                refused(functools.partial(save_to_end, writer, state), "No space left", f"rank {rank}", "iteration 3")
            assert names(folder) == ["iter_0000002", "latest_checkpointed_iteration.txt"]
    for broken in ("save_config", "sync_file"):  # what only rank 0 does
        with mock.patch.object(shard_writer, broken, side_effect=OSError(5, "Input/output error")):
            refused(lambda: manager(folder).save(state), "Input/output error", "rank 0")
    assert names(folder) == ["iter_0000002", "latest_checkpointed_iteration.txt"]
    assert digest(resumed(TP2_PP2, folder)) == good
    manager(folder).save(state)
    assert "iter_0000003" in names(folder)


def save_to_end(writer: CheckpointManager, state: TrainingState) -> None:
    writer.save(state)
    writer.finalize(blocking=True)


def full_disk(folder: pathlib.Path, tmpfs: str) -> None:
    """TMPFS holds one checkpoint of this model (1.1 MB), not two."""
    disk = pathlib.Path(tmpfs) / "run"
    state = trained(TP2_PP2)
    manager(disk).save(state)
    good = digest(state)
    train(state, 1)
    for flags in ({}, {"async_save": True}):
        writer = manager(disk, **flags)
        refused(functools.partial(save_to_end, writer, state), "No space left on device")
        assert names(disk) == ["iter_0000002", "latest_checkpointed_iteration.txt"]
    assert digest(resumed(TP2_PP2, disk)) == good


def damaged(folder: pathlib.Path, tmpfs: str) -> None:
    manager(folder).save(trained(TP2_PP2))
    damages: dict[str, Callable[[pathlib.Path], object]] = {
        "__2_0.distcp": lambda path: os.truncate(path, path.stat().st_size // 2),
        "__3_0.distcp": lambda path: flip(path, path.stat().st_size // 2),
        "__1_0.distcp": os.remove,
        "common.pt": lambda path: flip(path, 300),
        ".metadata": lambda path: flip(path, 2000),
        "run.json": lambda path: os.truncate(path, 100),
    }
    for name, damage in damages.items():
        copy = folder / f"copy{name}"
        if dist.get_rank() == 0:
            shutil.copytree(folder / "iter_0000002", copy / "iter_0000002")
            damage(copy / "iter_0000002" / name)
        dist.barrier()
        refused(functools.partial(resumed, TP2_PP2, copy), f"iter_0000002/{name}")


def flip(path: pathlib.Path, offset: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        block = stream.read(64)
        stream.seek(offset)
        stream.write(bytes(byte ^ 0xFF for byte in block))


def other_runs(folder: pathlib.Path, tmpfs: str) -> None:
    """Checkpoints of another model, optimizer or precision are refused before a tensor is touched."""
    manager(folder).save(trained(TP2_PP2))
    state = build(TP2_PP2)
    before = digest(state)
    wider = {**IDENTITY, "hidden_size": 64, "rotary": {"base": 500}}
    refused(lambda: manager(folder, wider).load(state), "hidden_size 32", "hidden_size 64", "rotary.base 500")
    assert digest(state) == before
    state.scheduler.lr_decay_steps = 160
    refused(lambda: manager(folder).load(state), "lr_decay_steps 80", "lr_decay_steps 160", "--override-opt")
    state.scheduler.override_opt_param_scheduler = True
    assert manager(folder).load(state) == Progress(iteration=2, consumed_train_samples=8)
    assert state.scheduler.lr_decay_steps == 160

    sharded = TP2_SHARDED.but(bf16=False)
    refused(lambda: resumed(sharded, folder), "a plain optimizer", "--use-distributed-optimizer")
    half = TP2_PP2.but(bf16=True)
    refused(lambda: resumed(half, folder), "optimizer.state.fp32_param", "--no-load-optim")
    refused(lambda: resumed(TP2_PP2.but(swiglu=False), folder), "linear_fc1", "model flags")
    for setup in (half, sharded):
        state = resumed(setup, folder, no_load_optim=True)
        manager(folder / "half", no_save_optim=True).save(state)
        old, new = saved_tensors(folder, 2), saved_tensors(folder / "half", 2)
        assert all(torch.equal(value, old[key].to(value.dtype)) for key, value in new.items())
        loaded = [parameter.clone() for parameter in parameters(state)]
        train(state, 1)
        steps = [(new - old).abs().max() for new, old in zip(parameters(state), loaded, strict=True)]
        assert max(steps) < 0.02, "the step started from main parameters that were not loaded"


def parameters(state: TrainingState) -> list[torch.Tensor]:
    return [parameter.detach() for chunk in state.model for parameter in chunk.parameters()]


def flags(folder: pathlib.Path, tmpfs: str) -> None:
    state = trained(TP2_PP2)
    manager(folder, no_save_optim=True, no_save_rng=True).save(state)
    refused(lambda: resumed(TP2_PP2, folder), "--no-save-optim", "--no-load-optim")
    refused(lambda: resumed(TP2_PP2, folder, no_load_optim=True), "--no-save-rng", "--no-load-rng")
    again = resumed(TP2_PP2, folder, no_load_optim=True, no_load_rng=True)
    assert all(torch.equal(p, q) for p, q in zip(parameters(state), parameters(again), strict=True))
    assert again.progress.iteration == 2
    assert again.scheduler.num_steps == 0

    fresh = build(TP2_PP2.but(seed=99))
    drawn = random_state.capture()
    assert manager(folder, finetune=True).load(fresh) == Progress()
    assert all(torch.equal(value, drawn[name]) for name, value in random_state.capture().items())

    empty = folder / "empty"
    with recorded("megatron.pretrain.checkpoint") as messages:
        assert manager(empty).load(fresh) is None
    assert dist.get_rank() or "starting from new weights" in messages[0]
    refused(lambda: manager(empty, exit_on_missing_checkpoint=True).load(fresh), "--exit-on-missing-checkpoint")
    assert manager(folder, load=None).load(fresh) is None
    manager(folder, save=None).save(fresh)


def choice(folder: pathlib.Path, tmpfs: str) -> None:
    """Which checkpoint is loaded, and what dead saves leave behind."""
    state = build(TP2_PP2)
    digests = {}
    for iteration in (1, 2, 3):
        train(state, 1)
        manager(folder).save(state)
        digests[iteration] = digest(state)
    assert digest(resumed(TP2_PP2, folder, ckpt_step=2)) == digests[2]
    refused(lambda: resumed(TP2_PP2, folder, ckpt_step=7), "--ckpt-step 7", "[1, 2, 3]")

    on_first(lambda: (folder / TRACKER).write_text("4"))
    refused(lambda: resumed(TP2_PP2, folder), "iteration 4", "--ckpt-step 3")
    on_first(lambda: (folder / TRACKER).unlink())
    assert digest(resumed(TP2_PP2, folder)) == digests[3]

    # Killed while iteration 3 was being replaced: it is restored, and the dead saves go at the next save.
    on_first(lambda: (folder / "iter_0000003").rename(folder / "iter_0000003.replaced-0a1b2c3d"))
    on_first(lambda: shutil.copytree(folder / "iter_0000002", folder / "iter_0000004.saving-0a1b2c3d"))
    assert digest(resumed(TP2_PP2, folder)) == digests[3]
    manager(folder).save(state)
    assert names(folder) == ["iter_0000001", "iter_0000002", "iter_0000003", TRACKER]
    assert digest(resumed(TP2_PP2, folder)) == digests[3]


def on_first(action: Callable[[], object]) -> None:
    if dist.get_rank() == 0:
        action()
    dist.barrier()
