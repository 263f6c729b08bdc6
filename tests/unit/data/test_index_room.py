"""An index that does not fit into memory is refused before it is begun; one that fits, or is there, never."""

import itertools
import pathlib
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from megatron.core.datasets.gpt_dataset import GPTDataset, _build_document_index

from megatron.pretrain.data import index_room
from megatron.pretrain.data.datasets import build_datasets
from megatron.pretrain.data.index_room import IndexSize, available_bytes, size_of
from megatron.pretrain.data.tokenizers import build_tokenizer
from overlap_recompute.plan.errors import DataError
from tests.unit.data.conftest import PairMaker
from tests.unit.data.support import make_config

GIB = 1 << 30
BYTE = "--tokenizer-type ByteLevelTokenizer"
MOCK = "--mock-data --tokenizer-type NullTokenizer --vocab-size 30 --eval-iters 0"
HUNDRED = [[number] * 19 + [256] for number in range(100)]


def give(monkeypatch: pytest.MonkeyPatch, size_bytes: int | None) -> None:
    """Let so much memory be free."""
    monkeypatch.setattr(index_room, "available_bytes", lambda: size_bytes)


def test_epochs_are_those_of_stock() -> None:
    for samples, length, tokens in itertools.product((None, 0, 1, 7, 999, 1000), (1, 8, 9), (1, 7, 8, 9, 8001, 9000)):
        stock = SimpleNamespace(
            num_samples=samples, config=SimpleNamespace(sequence_length=length, add_extra_token_to_sequence=1)
        )
        expected = GPTDataset._get_num_epochs(stock, tokens)  # type: ignore[arg-type]
        assert size_of(samples, length, tokens=tokens, documents=3).epochs == expected


@pytest.mark.parametrize("iterations", [5, 200, 1000])
def test_the_size_is_that_of_the_arrays(make_pair: PairMaker, iterations: int) -> None:
    config = make_config(f"{BYTE} --data-path {make_pair(HUNDRED)} --split 1 --eval-iters 0 --train-iters {iterations}")
    train = build_datasets(config, build_tokenizer(config)).train
    assert isinstance(train, GPTDataset)
    size = size_of(4 * iterations, 8, tokens=2000, documents=100)
    arrays = (train.document_index, train.sample_index, train.shuffle_index)
    assert (size.samples, size.kept_bytes) == (len(train), sum(array.nbytes for array in arrays))


def test_the_peak_is_that_of_the_grid_of_documents() -> None:
    documents = np.arange(5000, dtype=np.int32)
    tracemalloc.start()
    _build_document_index(documents, 40, np.random.RandomState(1), False)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert IndexSize(epochs=40, documents=5000, samples=1).peak_bytes == pytest.approx(peak_bytes, rel=0.02)


@pytest.mark.parametrize(("tokens", "documents", "gib"), [(10**12, 10**9, 111.8), (2 * 10**8, 10**5, 46.9)])
def test_a_long_run_fits_into_a_training_host(tokens: int, documents: int, gib: float) -> None:
    """A million iterations of 2048 sequences, of a large corpus and of made-up data."""
    size = size_of(2048 * 10**6, 2048, tokens=tokens, documents=documents)
    assert size.of_builders_bytes(1) / GIB == pytest.approx(gib, rel=0.001)


def test_arrays_of_large_runs_have_wide_numbers() -> None:
    few, many = (IndexSize(epochs=1, documents=1, samples=count) for count in (2**32 - 3, 2**32 - 2))
    assert many.kept_bytes - few.kept_bytes > 4 * 2**32
    few, many = (IndexSize(epochs=count, documents=1, samples=100) for count in (2**31 - 1, 2**31))
    assert many.kept_bytes - few.kept_bytes == 4 + 2 * 4 * 101


def test_builders_of_one_machine_come_after_the_first() -> None:
    size = IndexSize(epochs=10, documents=100, samples=50)
    assert size.of_builders_bytes(1) == size.peak_bytes == 24_000
    assert size.of_builders_bytes(3) == size.kept_bytes + 2 * 24_000


@pytest.mark.parametrize("flags", [MOCK, f"{MOCK} --train-iters 1 --eval-iters 99999999999"])
def test_a_run_without_end_is_refused_before_anything_is_built(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 4000 * GIB)
    config = make_config(flags if "--train-iters" in flags else f"{flags} --train-iters 999999999999")
    split = "validation" if "--train-iters 1 " in flags else "training"
    with pytest.raises(DataError) as error:
        build_datasets(config, build_tokenizer(config))
    assert f"{split} samples (" in str(error.value)
    assert "the memory that is free, 4000.0 GiB; draw fewer samples (--train-iters" in str(error.value)


def test_what_fits_to_the_byte_is_built_and_a_cached_index_needs_no_room(
    make_pair: PairMaker, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = f"{BYTE} --data-path {make_pair(HUNDRED)} --split 1 --eval-iters 0 --train-iters 200"
    config = make_config(f"{flags} --data-cache-path {tmp_path}/cache")
    tokenizer = build_tokenizer(config)
    needed_bytes = size_of(800, 8, tokens=2000, documents=100).peak_bytes
    give(monkeypatch, needed_bytes - 1)
    with pytest.raises(DataError, match="an index of 999 training samples .4 times 100 documents. that takes 0.0 GiB"):
        build_datasets(config, tokenizer)
    give(monkeypatch, needed_bytes)
    build_datasets(config, tokenizer)
    assert len(list((tmp_path / "cache").glob("*-GPTDataset-train-*_index.npy"))) == 3, "stock's names"
    give(monkeypatch, 0)
    build_datasets(config, tokenizer)


def test_a_system_that_does_not_say_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, None)
    config = make_config(MOCK)
    assert build_datasets(config, build_tokenizer(config)).train is not None


def test_free_memory_is_that_of_the_machine_or_of_the_tightest_group(tmp_path: pathlib.Path) -> None:
    def put(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    assert available_bytes(tmp_path) is None
    put("proc/meminfo", "MemTotal: 90000 kB\nMemAvailable:    1000 kB\n")
    put("proc/self/cgroup", "1:memory:/old\n0::/slice/job\n")
    assert available_bytes(tmp_path) == 1000 * 1024
    put("sys/fs/cgroup/slice/job/memory.max", "max\n")
    put("sys/fs/cgroup/slice/job/memory.current", "700000\n")
    assert available_bytes(tmp_path) == 1000 * 1024
    put("sys/fs/cgroup/slice/memory.max", "900000\n")
    put("sys/fs/cgroup/slice/memory.current", "700000\n")
    put("sys/fs/cgroup/slice/memory.stat", "anon 1\ninactive_file 30\nactive_file 20\n")
    assert available_bytes(tmp_path) == 200_050
    assert (available_bytes() or 0) > 0
