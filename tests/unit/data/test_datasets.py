"""Splits built by Megatron-Core: what they hold, which traps are closed, and what the index cache may do."""

import os
import pathlib

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset, MockGPTDataset

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.data.datasets import DatasetSplits, SampleDataset, build_datasets
from megatron.pretrain.data.index_cache import content_fingerprint
from megatron.pretrain.data.tokenizers import build_tokenizer
from overlap_recompute.plan.errors import DataError
from tests.unit.data.conftest import PairMaker
from tests.unit.data.support import make_config

BYTE = "--tokenizer-type ByteLevelTokenizer"
LONG = "--seq-length 512 --max-position-embeddings 512"  # mock data is 70 M tokens: few samples, quickly shuffled
HUNDRED = [[number] * 19 + [256] for number in range(100)]


def build(config: PretrainConfig) -> DatasetSplits:
    return build_datasets(config, build_tokenizer(config))


def tokens_of(dataset: SampleDataset | None, count: int | None = None) -> np.ndarray:
    assert dataset is not None
    return np.stack([dataset[place]["tokens"].numpy() for place in range(count or len(dataset))])


def test_splits_hold_their_own_documents_and_repeat_as_needed(make_pair: PairMaker, tmp_path: pathlib.Path) -> None:
    prefix = make_pair(HUNDRED)
    splits = build(make_config(f"{BYTE} --data-path {prefix} --split 90,10,0 --train-iters 200 --eval-interval 100"))
    assert isinstance(splits.train, GPTDataset)
    assert isinstance(splits.valid, GPTDataset)
    assert splits.test is None
    assert len(splits.train) >= 800  # 1800 tokens are 224 sequences of 8: several epochs
    assert set(np.unique(tokens_of(splits.train))) <= {*range(90), 256}
    assert set(np.unique(tokens_of(splits.valid))) <= {*range(90, 100), 256}
    sample = splits.train[3]
    assert set(sample) == {"tokens", "labels", "loss_mask", "position_ids"}
    assert sample["tokens"][1:].tolist() == sample["labels"][:-1].tolist()


def test_splits_nobody_draws_from_are_left_out(make_pair: PairMaker) -> None:
    # Stock loops for ever on a split with no documents even if no sample is wanted: 969,30,1 of 20 gives the test none.
    splits = build(make_config(f"{BYTE} --data-path {make_pair(HUNDRED[:20])} --eval-iters 0"))
    assert splits.train is not None
    assert (splits.valid, splits.test) == (None, None)


def test_a_run_that_has_read_more_than_its_flags_say_gets_enough(make_pair: PairMaker) -> None:
    """Resumed with a smaller global batch, it is further on than --train-iters of these would have brought it."""
    prefix = make_pair(HUNDRED)
    config = make_config(f"{BYTE} --data-path {prefix} --split 90,10,0 --train-iters 200 --eval-iters 0")
    tokenizer = build_tokenizer(config)
    train = build_datasets(config, tokenizer, train_samples=1700).train
    assert train is not None and len(train) >= 1700 > len(tokens_of(build(config).train))


def test_masks_and_positions(make_pair: PairMaker) -> None:
    prefix = make_pair([[1, 2, 3, 256]] * 40)
    plain = build(make_config(f"{BYTE} --data-path {prefix} --split 1 --eval-iters 0")).train
    reset = build(
        make_config(f"{BYTE} --data-path {prefix} --split 1 --eval-iters 0 --eod-mask-loss --reset-position-ids")
    ).train
    assert plain is not None
    assert reset is not None
    assert plain[0]["position_ids"].tolist() == list(range(8))
    assert plain[0]["loss_mask"].sum() == 8
    assert reset[0]["position_ids"].tolist() == [0, 1, 2, 3] * 2
    assert reset[0]["loss_mask"].tolist() == [1, 1, 1, 0] * 2
    assert reset[0]["loss_mask"].dtype == torch.float32


def test_weighted_blend_per_split(make_pair: PairMaker, tmp_path: pathlib.Path) -> None:
    low, high = make_pair([[1] * 50] * 10, "low"), make_pair([[2] * 50] * 10, "high")
    flags = f"{BYTE} --train-data-path 3 {low} 1 {high} --valid-data-path {high} --train-iters 100 --data-cache-path"
    splits = build(make_config(flags, str(tmp_path / "cache")))
    assert isinstance(splits.train, BlendedDataset)
    assert splits.test is None
    shares = (tokens_of(splits.train, 400) == 1).mean()
    assert shares == pytest.approx(0.75, abs=0.01)
    assert (tokens_of(splits.valid) == 2).all()


def test_mock_data() -> None:
    splits = build(
        make_config("--mock-data --tokenizer-type NullTokenizer --vocab-size 30 --eval-iters 0", *LONG.split())
    )
    assert isinstance(splits.train, MockGPTDataset)
    assert tokens_of(splits.train, 50).max() <= 30


def test_the_order_follows_the_seed_alone(make_pair: PairMaker) -> None:
    prefix = make_pair(HUNDRED)
    flags = f"{BYTE} --data-path {prefix} --split 1 --eval-iters 0"
    first, again, other = (tokens_of(build(make_config(f"{flags} --seed {seed}")).train) for seed in (1, 1, 2))
    assert (first == again).all()
    assert first.shape != other.shape or (first != other).any()


def test_building_leaves_the_default_generators_alone(make_pair: PairMaker) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    build(make_config(f"{BYTE} --data-path {make_pair(HUNDRED)} --split 1 --eval-iters 0"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]


def test_a_cached_index_is_used_and_dies_with_the_data_it_was_made_from(
    make_pair: PairMaker, tmp_path: pathlib.Path
) -> None:
    cache = tmp_path / "cache"
    prefix = make_pair(HUNDRED)
    config = make_config(f"{BYTE} --data-path {prefix} --split 1 --eval-iters 0 --data-cache-path {cache}")
    first = tokens_of(build(config).train)
    stamps = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert (tokens_of(build(config).train) == first).all()
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == stamps
    fingerprint = content_fingerprint(prefix)
    make_pair([[7] * 19 + [256]] * 60)  # at the same path: the stock cache would be read for it
    assert content_fingerprint(prefix) != fingerprint
    assert set(np.unique(tokens_of(build(config).train))) == {7, 256}


@pytest.mark.parametrize("keep_bytes", [0, 60, 130])
def test_a_half_written_cache_is_built_anew(make_pair: PairMaker, tmp_path: pathlib.Path, keep_bytes: int) -> None:
    cache = tmp_path / "cache"
    config = make_config(f"{BYTE} --data-path {make_pair(HUNDRED)} --split 1 --eval-iters 0 --data-cache-path {cache}")
    first = tokens_of(build(config).train)
    for path in cache.glob("*_index.npy"):
        os.truncate(path, keep_bytes)
    assert (tokens_of(build(config).train) == first).all()


def test_a_cache_with_pickled_objects_is_refused(make_pair: PairMaker, tmp_path: pathlib.Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    np.save(cache / "0-GPTDataset-train-document_index.npy", np.array([{}], dtype=object), allow_pickle=True)
    config = make_config(f"{BYTE} --data-path {make_pair(HUNDRED)} --split 1 --eval-iters 0 --data-cache-path {cache}")
    with pytest.raises(DataError, match=r"document_index.npy, which holds pickled objects"):
        build(config)


def test_an_unwritable_cache(make_pair: PairMaker, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    flags = f"{BYTE} --data-path {make_pair(HUNDRED)} --split 1 --eval-iters 0 --data-cache-path {tmp_path}/file/cache"
    with pytest.raises((DataError, NotADirectoryError)) as caught:
        build(make_config(flags))
    assert isinstance(caught.value, DataError), caught.value
    assert f"{tmp_path}/file/cache" in str(caught.value)
