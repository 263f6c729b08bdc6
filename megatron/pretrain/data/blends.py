"""Which documents go where: blends of prefixes, shares of splits, and how many samples each split needs."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron.pretrain.config import PretrainConfig
from overlap_recompute.plan.errors import DataError

SPLITS = ("training", "validation", "test")
SPLIT_FLAGS = ("--train-data-path", "--valid-data-path", "--test-data-path")
DEFAULT_SPLIT = "969,30,1"
SEVERAL = 2
"""The least count of prefixes that makes a blend; a single prefix needs no weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """Pairs to draw from, and in what proportion."""

    prefixes: tuple[str, ...]
    """Paths without `.bin` or `.idx`."""

    weights: tuple[float, ...] | None = None
    """One positive number per prefix; None: in proportion to their sizes, without repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """Where the samples of each split come from."""

    blends: tuple[Blend | None, Blend | None, Blend | None]
    """One per split; the same blend thrice when `shares` divides its documents. All None: made-up data."""

    shares: tuple[float, float, float] | None
    """Shares of the documents of every prefix, not normalized; None when each split has files of its own."""

    samples: tuple[int, int, int]
    """Sequences that the run will draw from each split."""

    @property
    def mock(self) -> bool:
        """Whether the tokens are made up."""
        return self.blends == (None, None, None)

    def documents(self, split: int, count: int) -> range:
        """Documents of a prefix with `count` documents that belong to split 0, 1 or 2 (Megatron-Core's arithmetic)."""
        if self.shares is None:
            return range(count)
        first, second, third = self.shares
        total = first + second + third  # in this order: the borders must be Megatron-Core's to the last bit
        borders = [0.0, *itertools.accumulate(share / total for share in self.shares)]
        return range(round(borders[split] * float(count)), round(borders[split + 1] * float(count)))

    def is_used(self, split: int) -> bool:
        """Whether the run draws samples from a split that is given documents."""
        given = self.blends[split] is not None and (self.shares is None or self.shares[split] > 0)
        return self.samples[split] > 0 and (given or self.mock)


def data_plan(config: PretrainConfig) -> DataPlan:
    """Work out the plan from the flags.

    Raises:
        DataError: no data, contradicting flags, or a malformed blend or split.
    """
    data, samples = config.data, sample_counts(config)
    own = (data.train_data_path, data.valid_data_path, data.test_data_path)
    if data.mock_data:
        if data.data_path is not None or any(own):
            raise DataError("--mock-data with files", "either made-up tokens or files", "leave one of the two out")
        return DataPlan(blends=(None, None, None), shares=None, samples=samples)
    if any(own):
        if data.data_path is not None or data.split is not None:
            clash = "--data-path" if data.data_path is not None else "--split"
            raise DataError(f"{clash} with {SPLIT_FLAGS[0]}", "files for all splits or for each", f"leave out {clash}")
        first, second, third = (parse_blend(words, flag) for words, flag in zip(own, SPLIT_FLAGS, strict=True))
        if first is None and not config.training.skip_train:
            raise DataError(f"no {SPLIT_FLAGS[0]}", "files to train on", f"add {SPLIT_FLAGS[0]}")
        return DataPlan(blends=(first, second, third), shares=None, samples=samples)
    blend = parse_blend(data.data_path, "--data-path")
    if blend is None:
        raise DataError("no data", "--data-path, --train-data-path or --mock-data", "add one of these flags")
    return DataPlan(blends=(blend,) * 3, shares=parse_split(data.split or DEFAULT_SPLIT), samples=samples)


def sample_counts(config: PretrainConfig) -> tuple[int, int, int]:
    """Sequences that a run draws from each split, counted as Megatron-LM counts them.

    Validation reads `--eval-iters` batches every `--eval-interval` iterations and once at the end; the test, once.
    """
    training, batch = config.training, config.global_batch_size
    evaluations = config.train_iters // training.eval_interval + 1
    return config.train_iters * batch, evaluations * training.eval_iters * batch, training.eval_iters * batch


def parse_blend(words: Sequence[str] | None, flag: str) -> Blend | None:
    """Read `prefix`, `prefix prefix ...` or `weight prefix weight prefix ...`.

    Raises:
        DataError: a weight without its prefix or the reverse, or a weight that is not a positive number.
    """
    if not words:
        return None
    weights = [_number(word) for word in words[0::2]]
    if weights[0] is None:
        stray = next((word for word in words if _number(word) is not None), None)
        if stray is not None:
            raise DataError(
                f"{flag} with the number {stray} among prefixes", "a weight before every prefix, or none", "complete it"
            )
        return Blend(prefixes=tuple(words))
    prefixes = tuple(words[1::2])
    if len(prefixes) != len(weights) or None in weights:
        raise DataError(
            f"{flag} {' '.join(words)}", "weights and prefixes in turn: 0.7 a_prefix 0.3 b_prefix", "complete the pairs"
        )
    numbers = tuple(weight for weight in weights if weight is not None)
    for weight, prefix in zip(numbers, prefixes, strict=True):
        if not 0 < weight < math.inf:
            raise DataError(f"{flag} with weight {weight} for {prefix}", "a positive number", "mend or drop the pair")
    return Blend(prefixes=prefixes, weights=numbers if len(prefixes) >= SEVERAL else None)


def parse_split(text: str) -> tuple[float, float, float]:
    """Read `--split`: up to three shares, such as "969,30,1".

    Raises:
        DataError: something else.
    """
    shares = [_number(word) for word in text.split(",")]
    usable = [share for share in shares if share is not None and 0 <= share < math.inf]
    if len(usable) != len(shares) or len(shares) > len(SPLITS) or usable[0] <= 0:
        raise DataError(
            f"--split {text}",
            "one to three shares that are not negative, the first above zero, such as 969,30,1",
            "mend the list",
        )
    first, second, third = (*usable, 0.0, 0.0)[:3]
    return first, second, third


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
