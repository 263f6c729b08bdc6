"""Training text, tokenizer and loader."""

from dataclasses import dataclass
from typing import Literal

from megatron.pretrain.config.ranges import NonNegativeInt, PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Data: training text, tokenizer and loader."""

    data_path: tuple[str, ...] | None = None
    """Path prefixes of .bin/.idx pairs: one, several, or a weighted blend "weight prefix weight prefix ..."."""

    data_args_path: str | None = None
    """File that holds the words of --data-path, for long blends."""

    train_data_path: tuple[str, ...] | None = None
    """Path prefixes or blend for training only; excludes --data-path and --split."""

    valid_data_path: tuple[str, ...] | None = None
    """Path prefixes or blend for validation."""

    test_data_path: tuple[str, ...] | None = None
    """Path prefixes or blend for the final test."""

    split: str | None = None
    """Shares of documents for training, validation and test, as "969,30,1", which is also the default for
    --data-path."""

    mock_data: bool = False
    """Made-up tokens instead of files."""

    data_cache_path: str | None = None
    """Folder for the index files that Megatron-Core derives; beside the data when not given."""

    num_workers: NonNegativeInt = 2
    """Loader processes per rank; 0 reads in the training process."""

    dataloader_type: Literal["single"] = "single"
    """Order of reading: single is one pass through the shuffled samples, by position."""

    tokenizer_type: (
        Literal[
            "NullTokenizer",
            "ByteLevelTokenizer",
            "HuggingFaceTokenizer",
            "GPT2BPETokenizer",
            "SentencePieceTokenizer",
            "GPTSentencePieceTokenizer",
            "Llama2Tokenizer",
        ]
        | None
    ) = None
    """Kind of tokenizer: bare token numbers; bytes (own name); a Hugging Face tokenizer.json; GPT-2's vocabulary and
    merges; a SentencePiece model with extra tokens, as it is, or as Llama 2 uses it. NullTokenizer with --mock-data
    when not given."""

    tokenizer_model: str | None = None
    """File of the tokenizer, or for HuggingFaceTokenizer and GPT2BPETokenizer also its folder."""

    vocab_file: str | None = None
    """File vocab.json of GPT2BPETokenizer."""

    merge_file: str | None = None
    """File merges.txt of GPT2BPETokenizer."""

    vocab_size: PositiveInt | None = None
    """Tokens of NullTokenizer, before its end-of-document token and before padding; of another tokenizer, the number
    that it must have."""

    reset_position_ids: bool = False
    """Count positions anew after each end-of-document token; needs learned positions."""

    eod_mask_loss: bool = False
    """No loss on end-of-document tokens."""
