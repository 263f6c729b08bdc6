"""Tokenizers of the `tokenizers` library: a Hugging Face `tokenizer.json`, and GPT-2's vocabulary and merges."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from megatron.pretrain.data.tokenizers.base import (
    Identity,
    TokenizerChoice,
    content_hash,
    corrupt_model,
    read_model_file,
    require_model,
)
from overlap_recompute.plan.errors import DataError

if TYPE_CHECKING:
    import tokenizers

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<EOD>")
"""Tokens that end a document, tried in this order when no `tokenizer_config.json` beside the model names one."""

_JSON = "a tokenizer.json of the Hugging Face `tokenizers` library, or a folder that holds one"
_GPT2 = "GPT-2's vocab.json and merges.txt"


class RustTokenizer:
    """A model of the `tokenizers` library. Text is only ever text: a document that spells out a special token, such
    as the source of a tokenizer, gets the ids of its characters and no end of document in its middle."""

    def __init__(self, model: "tokenizers.Tokenizer", *, kind: str, eod: int, files_hash: str) -> None:
        # A tokenizer.json may carry a truncation to the length of some model; a corpus must not be cut.
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = True
        self._model = model
        self.eod = eod
        # Ids may have gaps (removed tokens), so the count of tokens does not bound them.
        self.vocab_size: int = max(model.get_vocab(with_added_tokens=True).values()) + 1
        self.unique_identifiers: Identity = {
            "class": kind,
            "vocab_size": self.vocab_size,
            "eod": self.eod,
            "sha256": files_hash,
        }

    def tokenize(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._model.decode(list(ids), skip_special_tokens=False)


def hugging_face(choice: TokenizerChoice) -> RustTokenizer:
    """Load `tokenizer.json`.

    Raises:
        DataError: the library or the file is missing, the file is corrupt, or no end-of-document token is known.
    """
    path = require_model(choice, _JSON)
    if path.is_dir():
        path = path / "tokenizer.json"
    content = read_model_file(path, _JSON)
    library = _library()
    try:
        model = library.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise corrupt_model(path, error, _JSON) from error
    names = (_configured_end(path.parent / "tokenizer_config.json"), *END_TOKENS)
    ends = [token for name in names if name is not None and (token := model.token_to_id(name)) is not None]
    if not ends:
        raise corrupt_model(path, f"it holds no end-of-document token ({', '.join(END_TOKENS)})", _JSON)
    return RustTokenizer(model, kind="HuggingFaceTokenizer", eod=ends[0], files_hash=content_hash(content))


def gpt2_bpe(choice: TokenizerChoice) -> RustTokenizer:
    """Load GPT-2's files, from `--vocab-file` and `--merge-file` or from the folder `--tokenizer-model`.

    Raises:
        DataError: a file is missing or corrupt, the two do not belong together, or `<|endoftext|>` is not in them.
    """
    vocab_path, merge_path = _gpt2_paths(choice)
    vocab = read_model_file(vocab_path, _GPT2, "--vocab-file")
    merges = read_model_file(merge_path, _GPT2, "--merge-file")
    library = _library()
    try:
        model = library.Tokenizer(library.models.BPE.from_file(str(vocab_path), str(merge_path)))
    except Exception as error:  # the library raises bare Exception
        raise corrupt_model(vocab_path, f"with --merge-file {merge_path}: {error}", _GPT2, "--vocab-file") from error
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = library.decoders.ByteLevel()
    eod = model.token_to_id(END_TOKENS[0])
    if eod is None:
        raise corrupt_model(vocab_path, f"it holds no {END_TOKENS[0]}", _GPT2, "--vocab-file")
    return RustTokenizer(model, kind="GPT2BPETokenizer", eod=eod, files_hash=content_hash(vocab, merges))


def _gpt2_paths(choice: TokenizerChoice) -> tuple[Path, Path]:
    if choice.vocab_file is not None and choice.merge_file is not None:
        return Path(choice.vocab_file), Path(choice.merge_file)
    if choice.vocab_file is not None or choice.merge_file is not None:
        raise DataError(
            "only one of --vocab-file and --merge-file", "both, since neither works alone", "name the other file too"
        )
    folder = require_model(choice, f"{_GPT2}, or a folder that holds them")
    return folder / "vocab.json", folder / "merges.txt"


def _configured_end(path: Path) -> str | None:
    """End token that Hugging Face's `tokenizer_config.json` names; None without such a file."""
    if not path.is_file():
        return None
    try:
        named = json.loads(path.read_bytes()).get("eos_token")
    except (ValueError, AttributeError) as error:
        raise corrupt_model(path, error, "a JSON object with eos_token") from error
    return named.get("content") if isinstance(named, dict) else named


def _library() -> ModuleType:
    try:
        import tokenizers  # noqa: PLC0415 - optional
    except ImportError as error:
        raise DataError(
            "no Python package 'tokenizers'", "it for this --tokenizer-type", "run `pip install tokenizers`"
        ) from error
    return tokenizers
