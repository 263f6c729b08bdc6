"""Trains a tiny model for a few steps in this process and keeps every loss and every gradient; used by rank scripts."""

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from megatron.pretrain.config import PretrainConfig, parse_command_line, validate
from megatron.pretrain.platform import install_platform

BACKEND = os.environ.get("OVERLAP_TEST_BACKEND", "gloo")
"""nccl: on GPUs (tests/gpu/training); the processes of tests/distributed run on CPUs."""
DEVICE = install_platform(BACKEND)

from megatron.pretrain.data.tokenizers import build_tokenizer, padded_vocab_size  # noqa: E402
from megatron.pretrain.distributed.initialize import initialize_distributed  # noqa: E402
from megatron.pretrain.distributed.seeds import rank_seed, seed_everything  # noqa: E402
from megatron.pretrain.model import build_transformer_config  # noqa: E402
from megatron.pretrain.training.overlap import open_overlap  # noqa: E402
from megatron.pretrain.training.pipeline import open_pipeline  # noqa: E402
from megatron.pretrain.training.run import build_state  # noqa: E402
from megatron.pretrain.training.state import TrainingState  # noqa: E402
from megatron.pretrain.training.step import TrainStep  # noqa: E402

CPU = torch.device("cpu")
BASE = (
    "--hidden-size 32 --num-attention-heads 4 --seq-length 16 --micro-batch-size 2 --train-iters 100 --lr 1e-2 "
    f"--distributed-backend {BACKEND} --mock-data --vocab-size 64 --num-workers 0"
)
GPT = "--num-layers 2 --attention-dropout 0 --hidden-dropout 0"
DROPOUT = "--num-layers 2 --attention-dropout 0.1 --hidden-dropout 0.1"
LLAMA = (
    "--num-layers 2 --attention-dropout 0 --hidden-dropout 0 --normalization RMSNorm --swiglu "
    "--position-embedding-type rope --group-query-attention --num-query-groups 2 --disable-bias-linear "
    "--untie-embeddings-and-output-weights"
)
MOE = (
    "--num-layers 2 --attention-dropout 0.1 --hidden-dropout 0.1 --num-experts 4 --moe-router-topk 2 "
    "--moe-token-dispatcher-type alltoall --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2 "
    "--disable-bias-linear"
)
STEPS = 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one run of a few steps computed on this rank."""

    losses: tuple[torch.Tensor | None, ...]
    gradients: tuple[tuple[torch.Tensor, ...], ...]
    """By step: the whole gradient buffers, after the reduction over ranks and before the update."""
    weights: tuple[torch.Tensor, ...]
    """After the last update."""

    def differences(self, other: "Record") -> list[str]:
        """What is not equal bit for bit."""
        found = []
        for step, (mine, its) in enumerate(zip(self.losses, other.losses, strict=True)):
            if (mine is None) != (its is None) or (mine is not None and its is not None and not torch.equal(mine, its)):
                found.append(f"loss of step {step}: {mine} and {its}")
        for step, (ours, theirs) in enumerate(zip(self.gradients, other.gradients, strict=True)):
            found += [
                f"gradients {number} of step {step}"
                for number, (a, b) in enumerate(zip(ours, theirs, strict=True))
                if not torch.equal(a, b)
            ]
        pairs = zip(self.weights, other.weights, strict=True)
        return found + [f"weight {number}" for number, (a, b) in enumerate(pairs) if not torch.equal(a, b)]


def config_of(*flags: str) -> PretrainConfig:
    """A configuration of this rank; strings may hold several words."""
    config = parse_command_line([word for text in (BASE, *flags) for word in shlex.split(text)], os.environ)
    validate(config)
    return config


def batches(config: PretrainConfig) -> Iterator[dict[str, torch.Tensor]]:
    """Made-up microbatches, the same on every rank and in every run."""
    shape = config.training.micro_batch_size, config.model.seq_length + 1
    generator = torch.Generator().manual_seed(7)
    while True:
        tokens = torch.randint(0, 64, shape, generator=generator).to(DEVICE)
        yield {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "loss_mask": torch.ones(shape[0], shape[1] - 1, device=DEVICE),
            "position_ids": torch.arange(shape[1] - 1, device=DEVICE).expand(shape[0], -1).contiguous(),
        }


def build(config: PretrainConfig) -> TrainingState:
    """A freshly initialized model with its optimizer."""
    world = config.world
    pp_rank = torch.distributed.get_rank() * config.parallel.pipeline_model_parallel_size // world.world_size
    seed_everything(rank_seed(config.training.seed, pp_rank=pp_rank, dp_rank=0))
    vocab_size = padded_vocab_size(config, build_tokenizer(config))
    state, _ = build_state(config, build_transformer_config(config), vocab_size, DEVICE)
    for chunk in state.model:
        chunk.train()
    return state


def gradients(state: TrainingState) -> tuple[torch.Tensor, ...]:
    """Copies of the gradient buffers, those of experts included."""
    return tuple(
        buffer.grad_data.clone() for chunk in state.model for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
    )


def train(*flags: str, steps: int = STEPS) -> Record:
    """A few steps under these flags, in process groups that are there already."""
    config = config_of(*flags)
    state = build(config)
    found: list[tuple[torch.Tensor, ...]] = []
    with open_overlap(config, state.model, DEVICE) as overlap, contextlib.ExitStack() as stack:
        waits = overlap.pipeline_waits if overlap is not None else None
        schedule = stack.enter_context(open_pipeline(config, DEVICE, waits))
        step = TrainStep(
            config, before_update=lambda: found.append(gradients(state)), overlap=overlap, forward_backward=schedule
        )
        iterators = [batches(config) for _ in state.model]
        losses = tuple(step(state, iterators).loss for _ in range(steps))
    weights = tuple(weight.detach().clone() for chunk in state.model for weight in chunk.parameters())
    return Record(losses=losses, gradients=tuple(found), weights=weights)


def groups(*flags: str) -> AbstractContextManager[object]:
    """The process groups that these flags ask for."""
    return initialize_distributed(config_of(*flags), DEVICE)
