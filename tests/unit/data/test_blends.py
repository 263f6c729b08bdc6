"""Blends, shares and counts of samples."""

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)

from megatron.pretrain.data.blends import Blend, DataPlan, data_plan, parse_blend, parse_split, sample_counts
from overlap_recompute.plan.errors import DataError
from tests.unit.data.support import make_config

SHARE = st.one_of(st.integers(0, 1000).map(float), st.floats(0, 100).map(lambda share: round(share, 4)))


@given(st.tuples(SHARE.filter(bool), SHARE, SHARE), st.integers(1, 5000))
def test_documents_are_divided_as_megatron_core_does(shares: tuple[float, float, float], count: int) -> None:
    text = ",".join(f"{share:.4f}" for share in shares)
    blend = Blend(prefixes=("p",))
    plan = DataPlan(blends=(blend, blend, blend), shares=parse_split(text), samples=(1, 1, 1))
    stock = convert_split_vector_to_split_matrix(parse_and_normalize_split(text))
    for split, part in enumerate(stock):
        if part is not None:
            expected = range(int(round(part[0] * float(count))), int(round(part[1] * float(count))))
            assert plan.documents(split, count) == expected
        else:
            assert len(plan.documents(split, count)) == 0


@pytest.mark.parametrize("text", ["", "a,b", "0,1,1", "-1,2", "nan", "inf,1", "1,1,1,1", "90/10"])
def test_malformed_splits(text: str) -> None:
    with pytest.raises(DataError, match="--split"):
        parse_split(text)


def test_blends() -> None:
    assert parse_blend(None, "--data-path") is None
    assert parse_blend(("a",), "--data-path") == Blend(prefixes=("a",))
    assert parse_blend(("a", "b"), "--data-path") == Blend(prefixes=("a", "b"))
    assert parse_blend(("0.5", "a"), "--data-path") == Blend(prefixes=("a",))
    assert parse_blend(("3", "a", "1e0", "b"), "--data-path") == Blend(prefixes=("a", "b"), weights=(3.0, 1.0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("0.5", "a", "b"), "weights and prefixes in turn"),
        (("0.5", "a", "x", "b"), "weights and prefixes in turn"),
        (("a", "0.5", "b"), "number 0.5 among prefixes"),
        (("0.5",), "weights and prefixes in turn"),
        (("0", "a", "1", "b"), "weight 0.0 for a"),
        (("-1", "a", "1", "b"), "weight -1.0 for a"),
        (("nan", "a", "1", "b"), "weight nan for a"),
    ],
)
def test_malformed_blends(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_blend(words, "--data-path")


def test_counts_follow_megatron_lm() -> None:
    assert sample_counts(make_config("--train-iters 25 --eval-interval 10 --eval-iters 3")) == (100, 3 * 3 * 4, 12)


def test_plans(tmp_path: pathlib.Path) -> None:
    byte = "--tokenizer-type ByteLevelTokenizer"
    shared = data_plan(make_config(f"{byte} --data-path 2 a 1 b"))
    assert shared.shares == (969.0, 30.0, 1.0)
    assert shared.blends[0] == shared.blends[2] == Blend(prefixes=("a", "b"), weights=(2.0, 1.0))
    own = data_plan(make_config(f"{byte} --train-data-path a --valid-data-path b"))
    assert own.blends == (Blend(prefixes=("a",)), Blend(prefixes=("b",)), None)
    assert (own.is_used(1), own.is_used(2)) == (True, False)
    evaluated = data_plan(make_config(f"{byte} --valid-data-path b --skip-train"))
    assert evaluated.blends == (None, Blend(prefixes=("b",)), None)
    assert [evaluated.is_used(split) for split in range(3)] == [False, True, False]
    with pytest.raises(DataError, match="no --train-data-path"):
        data_plan(make_config(f"{byte} --valid-data-path b"))
    assert data_plan(make_config("--mock-data --tokenizer-type NullTokenizer --vocab-size 9")).mock
    (tmp_path / "words").write_text("2 a\n1 b\n")
    assert data_plan(make_config(f"{byte} --data-args-path {tmp_path / 'words'}")) == shared
