"""Counts the model of a run's options."""

from megatron.overlap.counting.cuda import as_on_cuda
from megatron.overlap.counting.model import count
from megatron.overlap.counting.stock import under_full_recompute
from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.data.tokenizers import build_tokenizer, padded_vocab_size
from overlap_recompute.plan.counted import CountedModel
from overlap_recompute.plan.kept_bytes import CUDA


def count_run(config: PretrainConfig, device: str) -> CountedModel:
    """The counted model of a run; the platform must be installed, and no process group exist.

    Args:
        config: its options.
        device: whose kernels save: cpu, or cuda, which need not exist.

    Raises:
        ConfigError: cuda, and layers whose kernels are not known.
    """
    counted = count(config, padded_vocab_size(config, build_tokenizer(config)))
    on_device = as_on_cuda(counted, config) if device == CUDA else counted
    return under_full_recompute(on_device, config)
