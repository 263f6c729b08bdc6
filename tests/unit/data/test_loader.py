"""Order of reading, worker processes, and the cut for context parallelism."""

import itertools
import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from megatron.pretrain.data.loader import Batch, MicrobatchOrder, build_loader, slice_for_context_parallel
from overlap_recompute.plan.errors import DataError
from tests.unit.data.support import make_config

MOCK = "--mock-data --tokenizer-type NullTokenizer --vocab-size 30"


class Numbered(Dataset):
    """Sample `place` holds its own number; and the process that made it."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> dict[str, object]:
        tokens = torch.full((8,), place)
        ignores_sigterm = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        return {
            "tokens": tokens, "labels": tokens + 1, "loss_mask": torch.full((8,), float(ignores_sigterm)),
            "position_ids": torch.full((8,), os.getpid()), "dataset_id": 0,
        }  # fmt: skip


def places(batches: list[Batch]) -> list[list[int]]:
    return [batch["tokens"][:, 0].tolist() for batch in batches]


@given(
    total=st.integers(0, 60), steps=st.integers(0, 4), micro=st.integers(1, 4), ranks=st.integers(1, 4),
)  # fmt: skip
def test_ranks_together_read_what_one_rank_reads(total: int, steps: int, micro: int, ranks: int) -> None:
    consumed = steps * micro * ranks
    orders = [
        list(
            MicrobatchOrder(
                total_samples=total, consumed_samples=consumed, micro_batch_size=micro, dp_rank=rank, dp_size=ranks
            )
        )
        for rank in range(ranks)
    ]
    merged = [place for step in zip(*orders, strict=True) for part in step for place in part]
    alone = MicrobatchOrder(total_samples=total, consumed_samples=consumed, micro_batch_size=1, dp_rank=0, dp_size=1)
    assert merged == [place for (place,) in alone][: len(merged)]
    assert len(merged) == max(0, total - consumed) // (micro * ranks) * micro * ranks


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing_and_default_generators_are_not_touched(workers: int) -> None:
    config = make_config(f"{MOCK} --num-workers {workers}")
    before = torch.get_rng_state()
    batches = list(build_loader(Numbered(21), consumed_samples=4, config=config, dp_rank=1, dp_size=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert places(batches) == [[6, 7], [10, 11], [14, 15], [18, 19]]
    assert set(batches[0]) == {"tokens", "labels", "loss_mask", "position_ids"}
    made_by = {int(batch["position_ids"][0, 0]) for batch in batches}
    assert (os.getpid() in made_by) == (workers == 0)
    assert len(made_by) == max(1, workers)


def test_a_position_is_resumed_exactly() -> None:
    config = make_config(MOCK)
    whole = list(build_loader(Numbered(40), consumed_samples=0, config=config, dp_rank=0, dp_size=1))
    read = list(
        itertools.islice(build_loader(Numbered(40), consumed_samples=0, config=config, dp_rank=0, dp_size=1), 7)
    )
    rest = list(build_loader(Numbered(40), consumed_samples=14, config=config, dp_rank=0, dp_size=1))
    assert places(read + rest) == places(whole)


def test_what_repeats_goes_on_from_any_position() -> None:
    """A resumed run may have evaluated more often than its flags now say; the first pass is that of an endless one."""

    def read(consumed: int, count: int, rank: int = 0) -> list[list[int]]:
        batches = build_loader(
            Numbered(11), consumed_samples=consumed, config=make_config(MOCK), dp_rank=rank, dp_size=2, repeats=True
        )
        return places(list(itertools.islice(batches, count)))

    whole = [[0, 1], [4, 5], [0, 1], [4, 5], [0, 1]]
    assert read(0, 5) == whole
    assert read(0, 3, rank=1) == [[2, 3], [6, 7], [2, 3]]
    assert read(4 * 97, 4) == whole[1:]


def test_workers_end_with_the_iterator_and_outlive_a_termination_signal() -> None:
    config = make_config(f"{MOCK} --num-workers 1 --exit-signal-handler")
    batches = build_loader(Numbered(40), consumed_samples=0, config=config, dp_rank=0, dp_size=1)
    batch = next(batches)
    worker = int(batch["position_ids"][0, 0])
    assert batch["loss_mask"].all(), "the worker does not ignore SIGTERM"
    os.kill(worker, signal.SIGTERM)
    assert places([next(batches)]) == [[2, 3]]
    batches.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_no_samples_left() -> None:
    with pytest.raises(DataError, match="a data position of 8 in 9 samples; expected at least 4 samples ahead"):
        build_loader(Numbered(9), consumed_samples=8, config=make_config(MOCK), dp_rank=0, dp_size=2)


def test_context_parallel_ranks_get_a_chunk_from_each_end() -> None:
    batch = {"tokens": torch.arange(16).reshape(2, 8)}
    assert slice_for_context_parallel(batch, cp_rank=0, cp_size=1) is batch
    parts = [slice_for_context_parallel(batch, cp_rank=rank, cp_size=2)["tokens"].tolist() for rank in range(2)]
    assert parts[0] == [[0, 1, 6, 7], [8, 9, 14, 15]]
    assert parts[1] == [[2, 3, 4, 5], [10, 11, 12, 13]]
