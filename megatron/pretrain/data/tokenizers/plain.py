"""Tokenizers that need no file: bytes, and bare token numbers."""

from collections.abc import Sequence

from megatron.pretrain.data.tokenizers.base import Identity, TokenizerChoice
from overlap_recompute.plan.errors import DataError

BYTES = 256
"""Values of a byte; the end-of-document id comes after them."""


class ByteLevelTokenizer:
    """The bytes of the text's UTF-8 form are its ids; id 256 ends a document."""

    vocab_size = BYTES + 1
    eod = BYTES

    @property
    def unique_identifiers(self) -> Identity:
        return {"class": "ByteLevelTokenizer", "vocab_size": self.vocab_size, "eod": self.eod}

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def detokenize(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < BYTES).decode("utf-8", errors="replace")


class NullTokenizer:
    """Ids written as numbers and parted by blanks; for made-up data and for text that was tokenized elsewhere.

    As in Megatron-LM the end-of-document id comes after the `size` numbers, so the vocabulary holds `size + 1`.
    """

    def __init__(self, size: int) -> None:
        self.eod = size
        self.vocab_size = size + 1

    @property
    def unique_identifiers(self) -> Identity:
        return {"class": "NullTokenizer", "vocab_size": self.vocab_size, "eod": self.eod}

    def tokenize(self, text: str) -> list[int]:
        ids = [int(word) for word in text.split()]
        outside = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if outside is not None:
            raise ValueError(f"token number {outside} is outside a vocabulary of {self.vocab_size}")
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        return " ".join(str(token) for token in ids)


def byte_level(choice: TokenizerChoice) -> ByteLevelTokenizer:
    """Make a `ByteLevelTokenizer`.

    Raises:
        DataError: a model file was given, which it would not read.
    """
    if choice.tokenizer_model is not None:
        raise DataError(
            f"--tokenizer-model {choice.tokenizer_model} with --tokenizer-type ByteLevelTokenizer",
            "no model file: bytes need none",
            "leave out --tokenizer-model, or choose HuggingFaceTokenizer or SentencePieceTokenizer",
        )
    return ByteLevelTokenizer()


def null(choice: TokenizerChoice) -> NullTokenizer:
    """Make a `NullTokenizer`.

    Raises:
        DataError: `--vocab-size` is missing or not positive.
    """
    if choice.vocab_size is None or choice.vocab_size < 1:
        given = "no --vocab-size" if choice.vocab_size is None else f"--vocab-size {choice.vocab_size}"
        raise DataError(
            f"--tokenizer-type NullTokenizer with {given}",
            "a positive count of token numbers",
            "add --vocab-size, for example 50257",
        )
    return NullTokenizer(choice.vocab_size)
