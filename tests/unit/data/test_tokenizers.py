"""Tokenizers: round trips, ids, identity, and refusals."""

import json
import pathlib
import shutil

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from megatron.pretrain.data.tokenizers import TokenizerChoice, build_tokenizer, load_tokenizer, padded_vocab_size
from overlap_recompute.plan.errors import DataError
from tests.unit.data.support import TEXTS, make_config

UNICODE = st.text(st.characters(exclude_categories=["Cs"]))
BYTES = load_tokenizer(TokenizerChoice(tokenizer_type="ByteLevelTokenizer"))


def choice(kind: str, model: object = None, **more: object) -> TokenizerChoice:
    return TokenizerChoice(tokenizer_type=kind, tokenizer_model=None if model is None else str(model), **more)  # type: ignore[arg-type]


@given(UNICODE)
def test_bytes_round_trip(text: str) -> None:
    ids = BYTES.tokenize(text)
    assert BYTES.detokenize(ids) == text
    assert BYTES.detokenize([*ids, BYTES.eod]) == text
    assert all(0 <= token < BYTES.eod for token in ids)
    assert (BYTES.eod, BYTES.vocab_size) == (256, 257)


def test_hugging_face_round_trip(bpe_file: pathlib.Path) -> None:
    tokenizer = load_tokenizer(choice("HuggingFaceTokenizer", bpe_file))
    assert (
        load_tokenizer(choice("HuggingFaceTokenizer", bpe_file.parent)).unique_identifiers
        == tokenizer.unique_identifiers
    )
    for text in (*TEXTS[:3], "", " leading", "tabs\t\r\n\n", "\u2028 é e\u0301 \U0001f600"):
        ids = tokenizer.tokenize(text)
        assert tokenizer.detokenize(ids) == text
        assert all(0 <= token < tokenizer.vocab_size and token != tokenizer.eod for token in ids)
    assert len(tokenizer.tokenize(TEXTS[0])) < len(TEXTS[0].encode())


def test_text_that_spells_the_end_of_document_is_text(bpe_file: pathlib.Path) -> None:
    tokenizer = load_tokenizer(choice("HuggingFaceTokenizer", bpe_file))
    ids = tokenizer.tokenize("a<|endoftext|>b")
    assert tokenizer.eod not in ids
    assert tokenizer.detokenize(ids) == "a<|endoftext|>b"


def test_a_truncation_in_the_model_file_does_not_cut_documents(bpe_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    model = tokenizers.Tokenizer.from_file(str(bpe_file))
    model.enable_truncation(4)
    model.enable_padding(length=4)
    model.save(str(tmp_path / "cut.json"))
    tokenizer = load_tokenizer(choice("HuggingFaceTokenizer", tmp_path / "cut.json"))
    assert tokenizer.detokenize(tokenizer.tokenize(TEXTS[0])) == TEXTS[0]


def test_the_end_token_may_be_configured_beside_the_model(bpe_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copy(bpe_file, tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "def"}}))
    other = load_tokenizer(choice("HuggingFaceTokenizer", tmp_path))
    assert other.eod == tokenizers.Tokenizer.from_file(str(bpe_file)).token_to_id("def")


def test_gpt2_files(bpe_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tokenizers.Tokenizer.from_file(str(bpe_file)).model.save(str(tmp_path))
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    tokenizer = load_tokenizer(choice("GPT2BPETokenizer", tmp_path))
    hugging_face = load_tokenizer(choice("HuggingFaceTokenizer", bpe_file))
    assert tokenizer.eod == vocab["<|endoftext|>"]
    assert tokenizer.tokenize(TEXTS[1]) == hugging_face.tokenize(TEXTS[1])
    assert tokenizer.detokenize(tokenizer.tokenize(TEXTS[1])) == TEXTS[1]
    files = {"vocab_file": str(tmp_path / "vocab.json"), "merge_file": str(tmp_path / "merges.txt")}
    assert load_tokenizer(choice("GPT2BPETokenizer", **files)).unique_identifiers == tokenizer.unique_identifiers
    with pytest.raises(DataError, match="only one of --vocab-file"):
        load_tokenizer(choice("GPT2BPETokenizer", vocab_file=files["vocab_file"]))
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<|endoftext|>": 1}))
    with pytest.raises(DataError, match=r"vocab.json, which cannot be used: with --merge-file .*merges.txt"):
        load_tokenizer(choice("GPT2BPETokenizer", tmp_path))


def test_sentence_piece_kinds(sentence_piece_file: pathlib.Path) -> None:
    plain = load_tokenizer(choice("GPTSentencePieceTokenizer", sentence_piece_file))
    llama = load_tokenizer(choice("Llama2Tokenizer", sentence_piece_file.parent))
    extended = load_tokenizer(choice("SentencePieceTokenizer", sentence_piece_file))
    ids = plain.tokenize(TEXTS[2])
    assert plain.detokenize(ids) == TEXTS[2]
    assert (plain.vocab_size, plain.eod) == (320, 2)
    assert llama.tokenize(TEXTS[2]) == [1, *ids]
    assert llama.eod == 2
    # Appended as Megatron-LM does: <CLS> <SEP> <EOD> <MASK>, then the service tokens the model lacks (padding).
    assert (extended.vocab_size, extended.eod) == (325, 322)
    assert extended.detokenize([*ids, extended.eod, *ids]) == f"{TEXTS[2]}<EOD>{TEXTS[2]}"
    with pytest.raises(ValueError):
        plain.tokenize("\ud800")


def test_bare_token_numbers() -> None:
    tokenizer = load_tokenizer(choice("NullTokenizer", vocab_size=10))
    assert (tokenizer.vocab_size, tokenizer.eod) == (11, 10)
    assert tokenizer.detokenize(tokenizer.tokenize(" 3  9\n0 ")) == "3 9 0"
    for text in ("11", "-1", "three"):
        with pytest.raises(ValueError):
            tokenizer.tokenize(text)


def test_identity_follows_the_content_and_not_the_place(bpe_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "other name.json"
    shutil.copy(bpe_file, copy)
    original, moved = (load_tokenizer(choice("HuggingFaceTokenizer", path)) for path in (bpe_file, copy))
    assert moved.unique_identifiers == original.unique_identifiers
    assert json.loads(json.dumps(original.unique_identifiers)) == original.unique_identifiers
    copy.write_bytes(bpe_file.read_bytes() + b"\n")
    assert load_tokenizer(choice("HuggingFaceTokenizer", copy)).unique_identifiers != original.unique_identifiers


@pytest.mark.parametrize(
    "kind", ["HuggingFaceTokenizer", "SentencePieceTokenizer", "Llama2Tokenizer", "GPT2BPETokenizer"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "corrupt", "not given"])
def test_unusable_model_files_are_refused_by_name(
    kind: str, damage: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    if damage != "missing":
        folder.mkdir()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"):
            (folder / name).write_bytes({"empty": b"", "corrupt": b"\x07not a model", "not given": b""}[damage])
    with pytest.raises(DataError) as caught:
        load_tokenizer(choice(kind, None if damage == "not given" else folder))
    named = "without --tokenizer-model" if damage == "not given" else str(folder)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_refusals(bpe_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="one of ByteLevelTokenizer, GPT2BPETokenizer"):
        load_tokenizer(choice("TikTokenizer"))
    with pytest.raises(DataError, match="no --vocab-size"):
        load_tokenizer(choice("NullTokenizer"))
    with pytest.raises(DataError, match="bytes need none"):
        load_tokenizer(choice("ByteLevelTokenizer", bpe_file))
    with pytest.raises(DataError, match="--vocab-size 512 with a ByteLevelTokenizer of 257"):
        load_tokenizer(choice("ByteLevelTokenizer", vocab_size=512))
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(tmp_path / "endless.json"))
    with pytest.raises(DataError, match="no end-of-document token"):
        load_tokenizer(choice("HuggingFaceTokenizer", tmp_path / "endless.json"))


@pytest.mark.parametrize(
    ("tensor_parallel", "divisible_by", "rows"), [(1, 128, 384), (2, 128, 512), (1, 1, 257), (2, 1, 258)]
)
def test_padded_vocabulary(tensor_parallel: int, divisible_by: int, rows: int) -> None:
    flags = f"--tensor-model-parallel-size {tensor_parallel} --make-vocab-size-divisible-by {divisible_by}"
    config = make_config(f"--tokenizer-type ByteLevelTokenizer --mock-data {flags}")
    assert padded_vocab_size(config, build_tokenizer(config)) == rows
