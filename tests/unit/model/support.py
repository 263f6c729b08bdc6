"""Tiny configurations, and megatron-core on one rank without network."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core import parallel_state, tensor_parallel

from megatron.pretrain.config import PretrainConfig, parse_command_line

SHAPE = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --micro-batch-size 2 --train-iters 2 "
    "--lr 1e-3 --distributed-backend gloo --attention-dropout 0 --hidden-dropout 0 --mock-data --vocab-size 64"
)
LLAMA = (
    "--normalization RMSNorm --swiglu --position-embedding-type rope --group-query-attention --num-query-groups 2 "
    "--disable-bias-linear --untie-embeddings-and-output-weights --qk-layernorm"
)
EXPERTS = "--num-experts 4 --moe-router-topk 2 --moe-token-dispatcher-type alltoall"
CPU = torch.device("cpu")
VOCAB = 64


def config_of(*flags: str) -> PretrainConfig:
    """The tiny configuration with further flags (strings of several words)."""
    return parse_command_line(" ".join((SHAPE, *flags)).split(), {})


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of one rank in memory, megatron-core's groups of size 1, and its seeds."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel_state.initialize_model_parallel()
        tensor_parallel.model_parallel_cuda_manual_seed(1234)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Keyword arguments for a GPTModel: two sequences of 16 tokens."""
    tokens = torch.randint(0, VOCAB, (2, 17), generator=torch.Generator().manual_seed(seed))
    return {
        "input_ids": tokens[:, :-1].contiguous(),
        "position_ids": torch.arange(16).expand(2, -1).contiguous(),
        "attention_mask": None,
        "labels": tokens[:, 1:].contiguous(),
    }
