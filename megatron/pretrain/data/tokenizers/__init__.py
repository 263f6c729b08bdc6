"""Tokenizers by Megatron-LM's `--tokenizer-type` names; all of them work from local files alone."""

from collections.abc import Callable

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.data.tokenizers.base import Tokenizer, TokenizerChoice
from megatron.pretrain.data.tokenizers.plain import byte_level, null
from megatron.pretrain.data.tokenizers.rust import gpt2_bpe, hugging_face
from megatron.pretrain.data.tokenizers.sentence_piece import extended_sentence_piece, gpt_sentence_piece, llama2
from overlap_recompute.plan.errors import DataError

__all__ = [
    "TOKENIZER_TYPES",
    "Tokenizer",
    "TokenizerChoice",
    "build_tokenizer",
    "load_tokenizer",
    "padded_vocab_size",
    "tokenizer_choice",
]

_LOADERS: dict[str, Callable[[TokenizerChoice], Tokenizer]] = {
    "ByteLevelTokenizer": byte_level,
    "GPT2BPETokenizer": gpt2_bpe,
    "GPTSentencePieceTokenizer": gpt_sentence_piece,
    "HuggingFaceTokenizer": hugging_face,
    "Llama2Tokenizer": llama2,
    "NullTokenizer": null,
    "SentencePieceTokenizer": extended_sentence_piece,
}

TOKENIZER_TYPES = tuple(_LOADERS)
"""The names that `--tokenizer-type` takes."""


def load_tokenizer(choice: TokenizerChoice) -> Tokenizer:
    """Load a tokenizer from local files; never touches the network.

    Raises:
        DataError: an unknown type, a missing, corrupt or mismatched file, or a `vocab_size` that is not the model's.
    """
    if choice.tokenizer_type not in _LOADERS:
        raise DataError(
            f"--tokenizer-type {choice.tokenizer_type}", f"one of {', '.join(TOKENIZER_TYPES)}", "choose one of these"
        )
    tokenizer = _LOADERS[choice.tokenizer_type](choice)
    own_size = choice.tokenizer_type != "NullTokenizer"
    if own_size and choice.vocab_size is not None and choice.vocab_size != tokenizer.vocab_size:
        raise DataError(
            f"--vocab-size {choice.vocab_size} with a {choice.tokenizer_type} of {tokenizer.vocab_size} tokens",
            "both to agree",
            "leave out --vocab-size, which only the NullTokenizer needs",
        )
    return tokenizer


def tokenizer_choice(config: PretrainConfig) -> TokenizerChoice:
    """Extract the tokenizer's options from a run's configuration."""
    data = config.data
    return TokenizerChoice(
        tokenizer_type=data.tokenizer_type or "NullTokenizer",
        tokenizer_model=data.tokenizer_model,
        vocab_size=data.vocab_size,
        vocab_file=data.vocab_file,
        merge_file=data.merge_file,
    )


def build_tokenizer(config: PretrainConfig) -> Tokenizer:
    """Load the tokenizer of a run; errors as in `load_tokenizer`."""
    return load_tokenizer(tokenizer_choice(config))


def padded_vocab_size(config: PretrainConfig, tokenizer: Tokenizer) -> int:
    """Rows of the embedding: the vocabulary rounded up to a multiple of what every tensor-parallel rank can share.

    The rule is Megatron-LM's: the multiple is `--make-vocab-size-divisible-by` times the tensor-parallel size.
    """
    multiple = config.model.make_vocab_size_divisible_by * config.parallel.tensor_model_parallel_size
    return -(-tokenizer.vocab_size // multiple) * multiple
