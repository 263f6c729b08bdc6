"""Initial weights that depend on the seed and on a weight's name, and not on how the model is spread over ranks.

# NOTE [ Initial weights by name ]
# 1. The name of an element is the key under which a checkpoint stores its tensor (the same in every layout), the layer
#    and expert where the key leaves them open, and its place in the whole tensor. All three come from
#    `sharded_state_dict()`, megatron-core's own map from local shards to global tensors.
# 2. Rows of the whole tensor are drawn in blocks of ROWS_PER_BLOCK, each from a generator of its own that is keyed by
#    a 128-bit hash of the name. A rank draws only the blocks that it holds rows of, whole, and keeps its part. Rows
#    that pad the vocabulary are drawn like any other, so their number changes no other row.
# 3. Weights are normal with the standard deviation of their role, and so is the router's bias. Other vectors (norms,
#    biases) stay as they were built, with one value everywhere.
# 4. Copies of a tensor (replicas, tied embeddings of the first and the last stage) have one key, hence one value.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

ROWS_PER_BLOCK = 16
"""Rows of a weight that are drawn at once; a change gives other initial weights."""

DRAWN_VECTOR = ".router.bias"
"""End of the key of the one vector that megatron-core draws (megatron/core/transformer/moe/router.py 0.16.1)."""

OUTPUT_PROJECTIONS = frozenset({"linear_proj", "linear_fc2"})
"""Layers that write to the residual stream; Megatron divides their deviation by sqrt(2 * layers)."""


@torch.no_grad()
def initialize_by_name(
    model_chunks: Sequence[MegatronModule], transformer_config: TransformerConfig, seed: int
) -> None:
    """Overwrite the weights of this rank's model chunks, in place. No communication; call it on every rank.

    Call before DDP and the optimizer, which copy weights into buffers of their own. NOTE [ Initial weights by name ]
    has the rules.

    Args:
        model_chunks: bare GPTModels.
        transformer_config: its `init_method_std`, `embedding_init_method_std` and `num_layers` set the deviations.
        seed: any two seeds give unrelated weights.
    """
    for chunk in model_chunks:
        drawn = set()
        for entry in chunk.sharded_state_dict().values():
            if _is_drawn(entry):
                for shard in entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]:
                    assert _same_storage(shard.data, entry.data), f"{shard.key} is a copy, not a view, of its weight"
                    _draw_into(shard, _deviation(shard.key, transformer_config), seed)
                drawn.add(entry.data.data_ptr())
        left = {name: p for name, p in chunk.named_parameters() if p.data_ptr() not in drawn}
        unsettled = [name for name, p in left.items() if p.dim() > 1 or (p != p[0]).any()]
        assert not unsettled, f"parameters that depend on the layout: {unsettled}"


def _is_drawn(entry: Any) -> bool:
    is_tensor = isinstance(entry, (ShardedTensor, ShardedTensorFactory))
    if not is_tensor or not isinstance(entry.data, torch.nn.Parameter):
        return False
    return entry.data.dim() > 1 or entry.key.endswith(DRAWN_VECTOR)


def _same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _deviation(key: str, config: TransformerConfig) -> float:
    parts = key.split(".")
    if parts[0] == "embedding":
        return config.embedding_init_method_std
    if OUTPUT_PROJECTIONS.intersection(parts):
        return config.init_method_std / (2.0 * config.num_layers) ** 0.5
    return config.init_method_std


def _draw_into(shard: ShardedTensor, deviation: float, seed: int) -> None:
    """Fill `shard.data` with its part of the whole tensor."""
    lead = shard.prepend_axis_num
    name = ".".join([shard.key, *map(str, shard.global_offset[:lead])])
    whole_columns = shard.global_shape[lead + 1 :]
    held_columns = [
        slice(start, start + length)
        for start, length in zip(shard.global_offset[lead + 1 :], shard.local_shape[1:], strict=True)
    ]
    first = shard.global_offset[lead]
    end = first + shard.local_shape[0]
    for block in range(first // ROWS_PER_BLOCK, -(-end // ROWS_PER_BLOCK)):
        block_start = block * ROWS_PER_BLOCK
        start, stop = max(first, block_start), min(end, block_start + ROWS_PER_BLOCK)
        held = (slice(start - block_start, stop - block_start), *held_columns)
        values = draw_block(name, block, whole_columns, seed)[held] * np.float32(deviation)
        shard.data[start - first : stop - first].copy_(torch.from_numpy(values))


def draw_block(name: str, block: int, columns: Sequence[int], seed: int) -> np.ndarray:
    """Standard normal values of one block of rows: float32 [ROWS_PER_BLOCK, *columns].

    Args:
        name: name of the whole tensor.
        block: number of the block; rows from `block * ROWS_PER_BLOCK`.
        columns: shape of one row of the whole tensor.
        seed: the run's seed.
    """
    key = hashlib.blake2b(f"{seed}/{name}/{block}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return generator.standard_normal((ROWS_PER_BLOCK, *columns), dtype=np.float32)


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Leave every random generator as it was: building a model draws a number of values that depends on its layout."""
    tracker = get_cuda_rng_tracker()
    tracker_states = tracker.get_states() if tracker.is_initialized() else None
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield
    if tracker_states is not None:
        tracker.set_states(tracker_states)
