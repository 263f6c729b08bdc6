"""Small corpora and tokenizers, made on the spot."""

import json
import pathlib
from collections.abc import Callable, Iterable

import pytest

from megatron.pretrain.platform import install_platform

install_platform("gloo")  # before the first import of megatron.core, which the test modules cause

import numpy as np  # noqa: E402
import sentencepiece  # noqa: E402
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder  # noqa: E402

from megatron.pretrain.data.sidecar import sidecar_path  # noqa: E402
from tests.unit.data.support import TEXTS, load_tool  # noqa: E402

PairMaker = Callable[..., str]


@pytest.fixture
def make_pair(tmp_path: pathlib.Path) -> PairMaker:
    """Make a pair with Megatron-Core's own builder and return its prefix."""

    def make(
        documents: Iterable[list[int]], name: str = "pair", dtype: type = np.uint16, tokenizer: dict | None = None
    ) -> str:
        prefix = str(tmp_path / name)
        builder = IndexedDatasetBuilder(prefix + ".bin", dtype=dtype)
        for document in documents:
            builder.add_document(np.array(document, dtype=dtype), [len(document)])
        builder.finalize(prefix + ".idx")
        if tokenizer is not None:
            sidecar_path(prefix).write_text(json.dumps({"format": 1, "tokenizer": tokenizer}))
        return prefix

    return make


@pytest.fixture(scope="session")
def bpe_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tokenizer.json trained by the project's own tool."""
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    arguments = [
        "--input",
        str(folder / "text.jsonl"),
        "--vocab-size",
        "300",
        "--output",
        str(folder / "tokenizer.json"),
    ]
    assert load_tool("train_tokenizer").main(arguments) == 0
    return folder / "tokenizer.json"


@pytest.fixture(scope="session")
def sentence_piece_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small SentencePiece model with begin and end pieces and byte fallback, and without padding."""
    prefix = tmp_path_factory.mktemp("sp") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(prefix), vocab_size=320, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, num_threads=1,
        minloglevel=2,
    )  # fmt: skip
    return prefix.with_suffix(".model")
