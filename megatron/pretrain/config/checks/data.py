"""Text and tokenizer. What the files hold is checked where they are read."""

import os

from megatron.pretrain.config.checks.common import Check, require
from megatron.pretrain.config.pretrain_config import PretrainConfig

TOKENIZER_FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "NullTokenizer": ((),),
    "ByteLevelTokenizer": ((),),
    "GPT2BPETokenizer": (("--vocab-file", "--merge-file"), ("--tokenizer-model",)),
}
"""Flags of the files that a kind of tokenizer reads, where it is not --tokenizer-model alone."""


def one_source_of_data(config: PretrainConfig) -> None:
    """Files to split, files per split, or made-up tokens."""
    data = config.data
    per_split = {
        "--train-data-path": data.train_data_path,
        "--valid-data-path": data.valid_data_path,
        "--test-data-path": data.test_data_path,
    }
    ways = {"--mock-data": data.mock_data, "--data-path": data.data_path is not None}
    given = [flag for flag, is_given in ways.items() if is_given]
    given += [next(flag for flag, paths in per_split.items() if paths)] if any(per_split.values()) else []
    require(
        len(given) == 1,
        " and ".join(given) if given else "no data",
        "one of --data-path, --train-data-path (with --valid-data-path and --test-data-path) and --mock-data",
        "remove all but one" if given else "add --data-path PREFIX of a .bin/.idx pair, or --mock-data",
    )
    require(
        not any(per_split.values()) or bool(data.train_data_path) or config.training.skip_train,
        f"{given[0]} without --train-data-path",
        "text to train on",
        "add --train-data-path or --skip-train",
    )
    require(
        not any(per_split.values()) or data.split is None,
        f"--split {data.split} with {given[0]}",
        "no --split where every split has files of its own",
        "remove --split",
    )


def blends_have_weights(config: PretrainConfig) -> None:
    """A blend is all prefixes, or pairs of weight and prefix."""
    data = config.data
    blends = {
        "--data-path": data.data_path,
        "--train-data-path": data.train_data_path,
        "--valid-data-path": data.valid_data_path,
        "--test-data-path": data.test_data_path,
    }
    for flag, words in blends.items():
        weights = [_number(word) for word in words or ()]
        is_weighted = bool(weights) and weights[0] is not None and len(weights) > 1
        pairs_match = all((weight is not None) == (place % 2 == 0) for place, weight in enumerate(weights))
        require(
            not is_weighted or (len(weights) % 2 == 0 and pairs_match and all(w is None or w > 0 for w in weights)),
            f"{flag} {' '.join(words or ())}",
            "prefixes alone, or pairs of a positive weight and a prefix",
            "give every prefix a weight before it, or none",
        )


def split_has_three_shares(config: PretrainConfig) -> None:
    """Shares are for training, validation and test; what is used must not be empty."""
    text = config.data.split
    if text is None:
        return
    shares = [_number(part) for part in text.split(",")]
    numbers = [share for share in shares if share is not None and share >= 0]
    require(
        len(numbers) == len(shares) == 3 and sum(numbers) > 0,
        f"--split {text!r}",
        "three numbers that are not negative, such as 969,30,1",
        "correct --split",
    )
    evaluates = config.training.eval_iters > 0
    names = ("training", "validation")
    used = (not config.training.skip_train, evaluates)
    empty = [name for name, share, is_used in zip(names, numbers, used, strict=False) if is_used and share == 0]
    require(
        not empty,
        f"--split {text!r} with no documents for {' and '.join(empty)}",
        "a share for every part that is read",
        "change --split, or set --eval-iters 0" if evaluates else "change --split",
    )


def tokenizer_has_its_source(config: PretrainConfig) -> None:
    """The files that its kind reads and no others; a vocabulary size for bare numbers."""
    data = config.data
    kind = data.tokenizer_type
    files = {
        "--tokenizer-model": data.tokenizer_model,
        "--vocab-file": data.vocab_file,
        "--merge-file": data.merge_file,
    }
    given = tuple(flag for flag, path in files.items() if path is not None)
    require(
        kind is not None,
        "no --tokenizer-type",
        "the tokenizer that made the data",
        "add --tokenizer-type, such as HuggingFaceTokenizer with --tokenizer-model tokenizer.json",
    )
    legal = TOKENIZER_FILES.get(kind or "", (("--tokenizer-model",),))
    words = " or ".join(" and ".join(flags) or "no file" for flags in legal)
    require(
        given in legal,
        f"--tokenizer-type {kind} with {' and '.join(given) or 'no file'}",
        words,
        f"give {kind} {words}",
    )
    require(
        kind != "NullTokenizer" or data.vocab_size is not None,
        "--tokenizer-type NullTokenizer without --vocab-size",
        "the number of tokens: bare numbers have no file that says it",
        "add --vocab-size",
    )
    for flag, path in files.items():
        require(
            path is None or os.path.exists(path),
            f"{flag} {path}, which does not exist",
            "the tokenizer's file",
            "correct the path",
        )


def position_reset_has_an_effect(config: PretrainConfig) -> None:
    """Megatron-Core's rotary embedding counts positions itself, and no embedding counts none."""
    kind = config.model.position_embedding_type
    require(
        not config.data.reset_position_ids or kind == "learned_absolute",
        f"--reset-position-ids with --position-embedding-type {kind}",
        "learned_absolute, the only kind that reads position numbers",
        "remove --reset-position-ids",
    )


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


CHECKS: tuple[Check, ...] = (
    one_source_of_data,
    blends_have_weights,
    split_has_three_shares,
    tokenizer_has_its_source,
    position_reset_has_an_effect,
)
