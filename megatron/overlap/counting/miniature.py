"""A model of one layer of each kind, with both ends, on ranks that share layers as the whole model's ranks do.

NOTE [ miniature ]
1. Layers of a GPT differ only in whether they have experts (`--moe-layer-freq`); that the rest is equal is what
   `tests/unit/overlap_counting` and `tests/distributed` compare with real runs of every layer.
2. What a layer keeps does not depend on the stage that holds it: its input is a tensor of the same size whether the
   layer before made it, the embedding, or another stage. So the miniature has one stage, and one data-parallel rank
   where experts allow it.
3. Its output matrix is its own: with a tied one autograd would hold the head's part of the gradient through all layers,
   which is so only where both ends are on one stage. The memory expression adds it there.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.module import Float16Module
from torch import Tensor, nn

from megatron.overlap.replacements import Replacements
from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.config.groups.recompute import RecomputeOptions
from megatron.pretrain.config.world import World
from megatron.pretrain.data.loader import FIELDS
from megatron.pretrain.model.build import gpt_chunk
from megatron.pretrain.model.transformer_config import build_transformer_config

DENSE, MIXTURE = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Miniature:
    """The configuration of a miniature."""

    config: PretrainConfig
    kinds: tuple[int, ...]
    """Of its layers: `DENSE`, `MIXTURE`."""


def miniature_of(config: PretrainConfig) -> Miniature:
    """One layer of each kind that the model has, on one pipeline stage."""
    pattern = config.moe_layer_pattern
    kinds = tuple(dict.fromkeys(pattern))
    parallel = config.parallel
    ranks = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    tensor_ranks = parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size
    experts = tensor_ranks * parallel.expert_model_parallel_size
    world_size = math.lcm(ranks, experts)
    moe = replace(config.moe, moe_layer_freq=str(list(kinds))) if config.moe.num_experts is not None else config.moe
    return Miniature(
        config=replace(
            config,
            model=replace(config.model, num_layers=len(kinds), untie_embeddings_and_output_weights=True),
            moe=moe,
            parallel=replace(
                parallel,
                pipeline_model_parallel_size=1,
                pipeline_model_parallel_layout=None,
                num_layers_per_virtual_pipeline_stage=None,
                num_virtual_stages_per_pipeline_rank=None,
                decoder_first_pipeline_num_layers=None,
                decoder_last_pipeline_num_layers=None,
            ),
            training=replace(config.training, global_batch_size=None),
            recompute=_without_full(config.recompute),
            world=World(rank=0, world_size=world_size),
        ),
        kinds=kinds,
    )


def _without_full(options: RecomputeOptions) -> RecomputeOptions:
    """Whole layers under a checkpoint follow from layers without (`stock.py`); parts of layers are run as they are."""
    if options.recompute_granularity != "full":
        return options
    return replace(options, recompute_granularity=None, recompute_method=None, recompute_num_layers=None)


def build_fake(mini: Miniature, padded_vocab_size: int) -> nn.Module:
    """The model as it computes, under a fake mode, in training mode; gradients of parameters vanish at once.

    A wrapped model adds each gradient to its buffer, which is not an activation, and frees it.
    """
    transformer_config = build_transformer_config(mini.config)
    chunk: Any = gpt_chunk(mini.config, transformer_config, padded_vocab_size, None)
    half = transformer_config.fp16 or transformer_config.bf16
    model: nn.Module = _half(transformer_config, chunk) if half else chunk
    model.train()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(_forget_gradient)
    return model


def _half(transformer_config: Any, chunk: Any) -> nn.Module:
    """As `Float16Module` makes it; converting a fake parameter in place is what torch cannot do."""
    for module in chunk.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype != transformer_config.params_dtype:
                converted = nn.Parameter(parameter.to(transformer_config.params_dtype))
                converted.__dict__.update(parameter.__dict__)
                module._parameters[name] = converted
    replacements = Replacements()
    convert = "bfloat16" if transformer_config.bf16 else "half"
    replacements.set(chunk, convert, lambda: chunk)
    try:
        return Float16Module(transformer_config, chunk)
    finally:
        replacements.restore()


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def fake_batch(config: PretrainConfig) -> dict[str, Tensor | None]:
    """What the loader hands to the first and the last stage: parts of one tensor."""
    sequence = config.model.seq_length // config.parallel.context_parallel_size
    shape = (len(FIELDS), config.training.micro_batch_size, sequence)
    batch = dict(zip(FIELDS, torch.zeros(shape, dtype=torch.long), strict=True))
    return {
        "input_ids": batch["tokens"],
        "position_ids": batch["position_ids"],
        "labels": batch["labels"],
        "attention_mask": None,
    }


@contextmanager
def still_generators() -> Iterator[None]:
    """Megatron-Core's tracker without its states: a generator has no fake one, and sizes do not depend on it."""
    tracker: Any = get_cuda_rng_tracker()

    @contextmanager
    def fork(*_: Any, **__: Any) -> Iterator[None]:
        yield

    tracker.__dict__["fork"] = fork
    try:
        yield
    finally:
        del tracker.__dict__["fork"]
