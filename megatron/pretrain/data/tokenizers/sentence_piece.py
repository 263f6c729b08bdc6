"""Tokenizers on a SentencePiece model: as it is (GPT, Llama 2), or with Megatron-LM's extra tokens after it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.pretrain.data.tokenizers.base import (
    Identity,
    TokenizerChoice,
    content_hash,
    corrupt_model,
    read_model_file,
    require_model,
)
from overlap_recompute.plan.errors import DataError

_WHAT = "a SentencePiece .model file"
_FIXED_TOKENS = ("<CLS>", "<SEP>", "<EOD>", "<MASK>")
_SERVICE_TOKENS = (("pad_id", "<PAD>"), ("bos_id", "<BOS>"), ("eos_id", "<EOS>"))


class SentencePieceTokenizer:
    """A SentencePiece model; ids at or above its own size stand for the `extra` tokens, in their order."""

    def __init__(
        self, model: Any, *, kind: str, eod: int, file_hash: str, extra: tuple[str, ...] = (), add_bos: bool = False
    ) -> None:
        self._model = model
        self._pieces: int = model.get_piece_size()
        self._extra = extra
        self._prefix = [model.bos_id()] if add_bos else []
        self.eod = eod
        self.vocab_size = self._pieces + len(extra)
        self.unique_identifiers: Identity = {
            "class": kind,
            "vocab_size": self.vocab_size,
            "eod": eod,
            "sha256": file_hash,
        }

    def tokenize(self, text: str) -> list[int]:
        text.encode("utf-8")  # the library would replace a lone surrogate in silence
        return self._prefix + self._model.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        parts, run = [], []
        for token in ids:
            if token < self._pieces:
                run.append(int(token))
                continue
            parts += [self._model.decode(run), self._extra[token - self._pieces]]
            run = []
        return "".join([*parts, self._model.decode(run)])


def gpt_sentence_piece(choice: TokenizerChoice) -> SentencePieceTokenizer:
    """Load a model whose own end-of-sequence piece ends documents (GPTSentencePieceTokenizer)."""
    return _with_own_end(choice, add_bos=False)


def llama2(choice: TokenizerChoice) -> SentencePieceTokenizer:
    """As `gpt_sentence_piece`, with the begin-of-sequence piece before every text (Llama2Tokenizer)."""
    return _with_own_end(choice, add_bos=True)


def extended_sentence_piece(choice: TokenizerChoice) -> SentencePieceTokenizer:
    """Load a model and append the tokens that Megatron-LM's SentencePieceTokenizer appends, with the same ids.

    Those of `<CLS> <SEP> <EOD> <MASK>` and of padding, begin and end that the model lacks follow its own pieces.
    """
    path, content, model = _load(choice)
    own = {model.id_to_piece(piece) for piece in range(model.get_piece_size())}
    names = [*_FIXED_TOKENS]
    for service, fallback in _SERVICE_TOKENS:
        piece = getattr(model, service)()
        names.append(model.id_to_piece(piece) if piece >= 0 else fallback)
    extra = tuple(name for name in dict.fromkeys(names) if name not in own)
    eod = model.piece_to_id("<EOD>") if "<EOD>" in own else model.get_piece_size() + extra.index("<EOD>")
    return SentencePieceTokenizer(
        model, kind="SentencePieceTokenizer", eod=eod, file_hash=content_hash(content), extra=extra
    )


def _with_own_end(choice: TokenizerChoice, *, add_bos: bool) -> SentencePieceTokenizer:
    path, content, model = _load(choice)
    needed = {"end": model.eos_id(), **({"begin": model.bos_id()} if add_bos else {})}
    missing = [name for name, piece in needed.items() if piece < 0]
    if missing:
        raise corrupt_model(path, f"it has no {missing[0]}-of-sequence piece", f"{_WHAT} with one")
    return SentencePieceTokenizer(
        model, kind=choice.tokenizer_type, eod=model.eos_id(), file_hash=content_hash(content), add_bos=add_bos
    )


def _load(choice: TokenizerChoice) -> tuple[Path, bytes, Any]:
    path = require_model(choice, _WHAT)
    if path.is_dir():
        path = path / "tokenizer.model"
    content = read_model_file(path, _WHAT)
    try:
        import sentencepiece  # noqa: PLC0415 - optional
    except ImportError as error:
        raise DataError(
            "no Python package 'sentencepiece'", "it for this --tokenizer-type", "run `pip install sentencepiece`"
        ) from error
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        model.get_piece_size()
    except Exception as error:  # what the library raises is not documented
        raise corrupt_model(path, error, _WHAT) from error
    return path, content, model
