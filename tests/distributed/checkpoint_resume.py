"""Scenarios: a run goes on exactly where it stopped, on the same layout or another."""

import pathlib

import torch
import torch.distributed as dist

from tests.distributed.checkpoint_model import Setup, digest, state_tensors, train  # isort: skip
from tests.distributed.checkpoint_support import (
    TP2_PP2,
    TP2_SHARDED,
    assert_same_content,
    manager,
    names,
    recorded,
    refused,
    resume_is_exact,
    resumed,
    saved_tensors,
    slow_disk,
    trained,
)

MIXTURE = Setup(expert=2, experts=4, layers=2)


def resume_plain(folder: pathlib.Path, tmpfs: str) -> None:
    resume_is_exact(TP2_PP2, folder)
    assert names(folder) == ["iter_0000002", "latest_checkpointed_iteration.txt"]
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == "2"
    # Two chunks in each of two stages; two data-parallel ranks may share the reading.
    chunked = Setup(pipeline=2, chunks=2)
    resume_is_exact(chunked, folder / "chunks")
    alone, shared = (resumed(chunked, folder / "chunks", ckpt_fully_parallel_load=share) for share in (False, True))
    assert digest(alone) == digest(shared)


def resume_distributed_optimizer(folder: pathlib.Path, tmpfs: str) -> None:
    resume_is_exact(TP2_SHARDED, folder)
    resume_is_exact(TP2_SHARDED.but(bf16=False), folder / "fp32", ckpt_fully_parallel_save=False)


def resume_bf16_and_sgd(folder: pathlib.Path, tmpfs: str) -> None:
    resume_is_exact(TP2_PP2.but(bf16=True), folder / "bf16")
    resume_is_exact(TP2_PP2.but(optimizer="sgd"), folder / "sgd")


def reshard_plain(folder: pathlib.Path, tmpfs: str) -> None:
    manager(folder).save(trained(TP2_PP2))
    for name, setup in {"tp4": Setup(tensor=4), "pp2vpp2": Setup(pipeline=2, chunks=2), "dp4": Setup()}.items():
        with recorded("megatron.pretrain.checkpoint") as messages:
            state = resumed(setup, folder)
        fresh = [text for text in messages if "random states start afresh" in text]
        assert len(fresh) == (dist.get_rank() == 0), messages
        manager(folder / name).save(state)
        assert_same_content(folder, folder / name)
        train(state, 1)


def reshard_distributed_optimizer(folder: pathlib.Path, tmpfs: str) -> None:
    manager(folder).save(trained(TP2_SHARDED))
    for name, setup in {"pp2": Setup(pipeline=2), "dp4": Setup()}.items():
        state = resumed(setup.but(bf16=True, distributed_optimizer=True), folder)
        manager(folder / name).save(state)
        assert_same_content(folder, folder / name)
        train(state, 1)


def reshard_padded_vocabulary(folder: pathlib.Path, tmpfs: str) -> None:
    manager(folder).save(trained(TP2_PP2))
    state = resumed(Setup(tensor=4, vocabulary=96), folder)
    manager(folder / "wider").save(state)
    old, new = saved_tensors(folder, 2), saved_tensors(folder / "wider", 2)
    key = "embedding.word_embeddings.weight"
    assert torch.equal(old[key], new[key][:64])
    assert not new[key][64:].any()


def mixture_of_experts(folder: pathlib.Path, tmpfs: str) -> None:
    resume_is_exact(MIXTURE, folder)
    other = MIXTURE.but(expert=4)
    refused(lambda: resumed(other, folder), "--expert-model-parallel-size 2", "--no-load-optim")
    state = resumed(other, folder, no_load_optim=True)
    manager(folder / "ep4", no_save_optim=True).save(state)
    weights = saved_tensors(folder, 2)
    assert all(torch.equal(value, weights[key]) for key, value in saved_tensors(folder / "ep4", 2).items())


def background_save(folder: pathlib.Path, tmpfs: str) -> None:
    """What is written is the state at the time of the call, whatever training does before the writer gets to it."""
    for name, setup in {"plain": TP2_PP2, "sharded": TP2_SHARDED}.items():
        state = trained(setup)
        writer = manager(folder / name, async_save=True)
        with slow_disk(seconds=0.5):
            writer.save(state)
        before = digest(state)
        with torch.no_grad():
            for tensor in state_tensors(state):
                tensor.fill_(1)
        assert "iter_0000002" not in names(folder / name)
        while "iter_0000002" not in names(folder / name):
            writer.finalize(blocking=False)
        assert digest(resumed(setup, folder / name)) == before
        writer.close()
