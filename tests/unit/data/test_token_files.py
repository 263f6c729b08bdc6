"""Pairs on disk: what is read is what was written, and damage of any kind is named."""

import pathlib
import re
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron.pretrain.data.token_files import open_token_file, unigram_entropy_nats
from overlap_recompute.plan.errors import DataError
from tests.unit.data.conftest import PairMaker

DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 10]]
SAME_FOLDER = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_reads_what_megatron_core_wrote(make_pair: PairMaker, dtype: type) -> None:
    prefix = make_pair(DOCUMENTS, dtype=dtype)
    file, stock = open_token_file(prefix), IndexedDataset(prefix)
    assert (file.documents, file.tokens, file.dtype) == (4, 10, np.dtype(dtype))
    assert file.tokens_between(1, 3) == 5
    assert file.lengths.tolist() == stock.sequence_lengths.tolist()
    assert file.token_array().tolist() == [token for document in DOCUMENTS for token in document]


@SAME_FOLDER
@given(st.lists(st.lists(st.integers(0, 300), max_size=9), min_size=1, max_size=9), st.data())
def test_any_shortened_or_lengthened_file_is_refused(
    make_pair: PairMaker, documents: list[list[int]], data: st.DataObject
) -> None:
    prefix = make_pair(documents)
    assert open_token_file(prefix).documents == len(documents)
    ending = data.draw(st.sampled_from([".idx", ".bin"]))
    path = pathlib.Path(prefix + ending)
    content = path.read_bytes()
    changed = content[: data.draw(st.integers(0, len(content)))] + data.draw(st.sampled_from([b"", b"\0", b"\0" * 8]))
    if len(changed) == len(content):
        return
    path.write_bytes(changed)
    with pytest.raises(DataError, match=re.escape(str(path))):
        open_token_file(prefix)


def overwrite(prefix: str, offset: int, raw: bytes) -> None:
    with open(prefix + ".idx", "r+b") as stream:
        stream.seek(offset)
        stream.write(raw)


@pytest.mark.parametrize(
    ("offset", "raw", "message"),
    [
        (0, b"PK\x03\x04", "begins with b'PK"),
        (9, struct.pack("<Q", 2), "of format version 2"),
        (17, b"\x07", "token dtype code 7"),
        (17, b"\x63", "token dtype code 99"),
        (17, b"\x04", "pair.bin of 20 bytes; expected the 40 bytes|corrupt at document 0"),
        (34 + 4, struct.pack("<i", 7), "corrupt at document 1"),
        (34 + 16 + 16, struct.pack("<q", 4), "corrupt at document 1"),
        (34 + 16, struct.pack("<q", 2), "corrupt at document 0"),
        (34 + 48 + 32, struct.pack("<q", 9), "document borders from 0 to 9"),
    ],
)
def test_damage_inside_the_index(make_pair: PairMaker, offset: int, raw: bytes, message: str) -> None:
    prefix = make_pair(DOCUMENTS)
    overwrite(prefix, offset, raw)
    with pytest.raises(DataError, match=message):
        open_token_file(prefix)


def test_a_bin_of_another_pair(make_pair: PairMaker) -> None:
    first, second = make_pair(DOCUMENTS, "first"), make_pair(DOCUMENTS[:3], "second")
    pathlib.Path(second + ".bin").rename(first + ".bin")
    with pytest.raises(DataError, match=r"first.bin of 16 bytes; expected the 20 bytes \(10 tokens of uint16\)"):
        open_token_file(first)


def test_missing_files(make_pair: PairMaker) -> None:
    prefix = make_pair(DOCUMENTS)
    with pytest.raises(DataError, match=f"give the prefix without its ending: {re.escape(prefix)}"):
        open_token_file(prefix + ".bin")
    pathlib.Path(prefix + ".bin").unlink()
    with pytest.raises(DataError, match=r"no file .*pair.bin"):
        open_token_file(prefix)


def test_no_documents(make_pair: PairMaker) -> None:
    with pytest.raises(DataError, match="no documents"):
        open_token_file(make_pair([]))


def test_unigram_entropy(make_pair: PairMaker) -> None:
    assert unigram_entropy_nats(make_pair([[3] * 7], "one")) == 0.0
    assert unigram_entropy_nats(make_pair([[0, 1], [2, 3]], "four")) == pytest.approx(np.log(4))
    skewed = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert unigram_entropy_nats(make_pair([[9, 5, 9, 9]], "skewed")) == pytest.approx(skewed)
