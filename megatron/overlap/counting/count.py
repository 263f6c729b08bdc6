"""Counts the model of a run's options."""

import torch

from megatron.overlap.counting.model import count
from megatron.overlap.counting.stock import under_full_recompute
from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.data.tokenizers import build_tokenizer, padded_vocab_size
from overlap_recompute.plan.counted import CountedModel


def count_run(config: PretrainConfig, device: str) -> CountedModel:
    """The counted model of a run; the platform must be installed.

    Args:
        config: its options.
        device: cpu or cuda, which need not exist.
    """
    counted = count(config, padded_vocab_size(config, build_tokenizer(config)), torch.device(device))
    return under_full_recompute(counted, config)
