"""How long kernels take on hardware that one does not have: a roofline with shape efficiency.

A kernel takes the longest of its arithmetic, its memory traffic and the launch floor.

NOTE [ shape efficiency of a product ]
1. A product m x n x k is cut into tiles of m and n; a tile that reaches over the edge is computed whole.
2. The tiles run in waves of as many as there are multiprocessors; the last wave takes as long as a full one.
3. Smaller tiles waste less in 1 and 2 but are slower in themselves: each entry of `TILES` has its own factor. The best
   tile is taken, as the library's heuristic aims to.
4. A tile has a prologue and an epilogue worth `RAMP_CHANNELS` of k.
5. A product with few tiles may be split along k into parts that add up at the end, at `SPLIT_SPEED`.
"""

import math

from overlap_recompute.simulator.hardware import Hardware

TILES = ((128, 256, 1.0), (128, 128, 0.95), (128, 64, 0.8), (64, 64, 0.6))
"""(rows, columns, speed in comparison)."""
RAMP_CHANNELS = 64
SPLITS, SPLIT_SPEED, LEAST_SPLIT_CHANNELS = (2, 4, 8, 16), 0.9, 256
RAMP_TOKENS = 512
"""Flash attention: a sequence of so many tokens runs at half of the efficiency of a long one."""
BACKWARD_PRODUCTS = 2.5
"""Flash attention: products of the backward pass over those of the forward pass (five to two)."""
FP32_BYTES = 4


def gemm_efficiency(hardware: Hardware, rows: int, columns: int, inner: int, batch: int = 1) -> float:
    """Fraction of the peak that a product reaches; see the NOTE above."""
    splits = (1, *(parts for parts in SPLITS if inner >= parts * LEAST_SPLIT_CHANNELS))
    shape = max(
        _tile_efficiency(hardware, rows, columns, batch * parts, tile) * _ramp(inner, parts)
        for tile in TILES
        for parts in splits
    )
    return hardware.gemm_efficiency * shape


def gemm_us(
    hardware: Hardware,
    rows: int,
    columns: int,
    inner: int,
    *,
    element_bytes: int,
    batch: int = 1,
    adds_in_fp32: bool = False,
) -> float:
    """Time of `batch` products of (rows x inner) by (inner x columns).

    Args:
        hardware: where.
        rows: m.
        columns: n.
        inner: k.
        element_bytes: of an element of the operands, and of the result.
        batch: independent products in one kernel.
        adds_in_fp32: the result is added to an fp32 tensor: a weight gradient in the gradient buffer.
    """
    flops = 2.0 * batch * rows * columns * inner
    result_bytes = 2 * FP32_BYTES if adds_in_fp32 else element_bytes
    moved = batch * (inner * (rows + columns) * element_bytes + rows * columns * result_bytes)
    compute_us = flops / (hardware.flops_per_us * gemm_efficiency(hardware, rows, columns, inner, batch))
    return max(compute_us, moved / hardware.memory_bytes_per_us, hardware.kernel_launch_us)


def memory_us(hardware: Hardware, nbytes: float, kernels: int = 1) -> float:
    """Time of kernels that only move `nbytes`, together."""
    return max(nbytes / hardware.memory_bytes_per_us, kernels * hardware.kernel_launch_us)


def flash_attention_us(
    hardware: Hardware, *, sequences: int, heads: int, tokens: int, channels: int, backward: bool = False
) -> float:
    """Time of causal flash attention: half of the square of scores, at an efficiency that grows with the sequence."""
    flops = 4.0 * sequences * heads * tokens**2 * channels / 2
    efficiency = hardware.attention_backward_efficiency if backward else hardware.attention_forward_efficiency
    efficiency *= tokens / (tokens + RAMP_TOKENS)
    work_us = flops * (BACKWARD_PRODUCTS if backward else 1) / (hardware.flops_per_us * efficiency)
    return max(work_us, hardware.kernel_launch_us * (2 if backward else 1))


def unfused_attention_us(
    hardware: Hardware,
    *,
    sequences: int,
    heads: int,
    tokens: int,
    channels: int,
    element_bytes: int,
    dropout: bool = False,
    backward: bool = False,
) -> float:
    """Time of attention by two batched products over the whole square and a softmax (and dropout) in memory."""
    batch = sequences * heads
    scores = batch * tokens**2
    products_us = gemm_us(hardware, tokens, tokens, channels, element_bytes=element_bytes, batch=batch)
    products_us += gemm_us(hardware, tokens, channels, tokens, element_bytes=element_bytes, batch=batch)
    softmax_us = memory_us(hardware, scores * element_bytes * (3 if backward else 2))
    dropout_us = memory_us(hardware, scores * (2 * element_bytes + 1)) if dropout else 0.0
    return products_us * (2 if backward else 1) + softmax_us + dropout_us


def _ramp(inner: int, parts: int) -> float:
    """What prologue, epilogue and adding parts up leave."""
    each = inner / parts
    return each / (each + RAMP_CHANNELS) * (SPLIT_SPEED if parts > 1 else 1.0)


def _tile_efficiency(hardware: Hardware, rows: int, columns: int, batch: int, tile: tuple[int, int, float]) -> float:
    tile_rows, tile_columns, speed = tile
    tiles = batch * math.ceil(rows / tile_rows) * math.ceil(columns / tile_columns)
    waves = math.ceil(tiles / hardware.streaming_multiprocessors)
    computed = waves * hardware.streaming_multiprocessors * tile_rows * tile_columns
    return speed * batch * rows * columns / computed
