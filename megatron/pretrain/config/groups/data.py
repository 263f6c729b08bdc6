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

    tokenizer_type: Literal[
        "NullTokenizer", "ByteLevelTokenizer", "HuggingFaceTokenizer", "SentencePieceTokenizer"
    ] | None = None  # fmt: skip
    """Kind of tokenizer: bare token numbers, bytes (own name), a Hugging Face tokenizer.json, a SentencePiece model;
    NullTokenizer with --mock-data when not given."""

    tokenizer_model: str | None = None
    """File (or for Hugging Face its folder) of the tokenizer."""

    vocab_size: PositiveInt | None = None
    """Tokens of NullTokenizer, before its end-of-document token and before padding."""

    reset_position_ids: bool = False
    """Count positions anew after each end-of-document token; needs learned positions."""

    eod_mask_loss: bool = False
    """No loss on end-of-document tokens."""
