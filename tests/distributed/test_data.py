"""Four ranks build the same splits from one cache, and together read what one rank would read."""

import json
import sys

import pytest

from megatron.pretrain.data.tokenizers import TokenizerChoice, load_tokenizer
from megatron.pretrain.platform import install_platform
from tests.distributed.launch import run_ranks

install_platform("gloo")

import numpy as np  # noqa: E402
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder  # noqa: E402

WORLD = 4
DOCUMENTS = 50


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each rank of data_ranks.py found."""
    folder = tmp_path_factory.mktemp("data")
    eod = load_tokenizer(TokenizerChoice(tokenizer_type="ByteLevelTokenizer")).eod
    builder = IndexedDatasetBuilder(str(folder / "text.bin"), dtype=np.uint16)
    for document in range(DOCUMENTS):
        tokens = np.array([(document * 7 + place) % 200 for place in range(20)] + [eod], np.uint16)
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(str(folder / "text.idx"))
    command = [sys.executable, "-m", "tests.distributed.data_ranks", str(folder), str(folder)]
    results = run_ranks(command, WORLD)
    assert all(result.returncode == 0 for result in results), "\n".join(result.output[-2000:] for result in results)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("kind", ["single", "blend"])
def test_only_the_first_and_the_last_stage_have_data(reports: list[dict], kind: str) -> None:
    first, *inner, last = (report[kind] for report in reports)
    assert first == last
    assert first["lengths"]["train"] >= 48
    assert first["lengths"]["valid"] >= 16
    assert first["lengths"]["test"] is None
    for stage in inner:
        assert set(stage["lengths"].values()) == {None}


def test_data_parallel_ranks_share_the_order_that_one_rank_reads(reports: list[dict]) -> None:
    found = {(report["parallel"]["dp_rank"], report["parallel"]["cp_rank"]): report["parallel"] for report in reports}
    assert sorted(found) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for dp_rank in range(2):
        assert found[dp_rank, 0]["tokens"] == found[dp_rank, 1]["tokens"]
    merged = [
        sample
        for pair in zip(found[0, 0]["tokens"], found[1, 0]["tokens"], strict=True)
        for part in pair
        for sample in part
    ]
    assert len(merged) >= 40
    assert len({tuple(sample) for sample in merged}) > 20, "the samples are all alike: the comparison would be empty"


def test_the_cut_for_context_parallelism_is_megatron_cores(reports: list[dict]) -> None:
    assert all(report["parallel"]["cut_as_stock"] for report in reports)
