"""Kernels and collectives of the analytic model against what must hold on any hardware."""

import dataclasses
import math

import pytest

from overlap_recompute.simulator.analytic_compute import (
    flash_attention_us,
    gemm_efficiency,
    gemm_us,
    memory_us,
    unfused_attention_us,
)
from overlap_recompute.simulator.analytic_links import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    REDUCE_SCATTER,
    RankGroup,
    collective_fit,
    collective_us,
    group_bytes_per_us,
    send_fit,
    send_us,
)
from overlap_recompute.simulator.hardware_table import A100_80GB_NVLINK as A100
from overlap_recompute.simulator.hardware_table import HARDWARE

SIZES = (1, 7, 64, 129, 1000, 4096, 12288)


@pytest.mark.parametrize("hardware", HARDWARE, ids=lambda hardware: hardware.name)
def test_a_product_is_never_faster_than_the_roofline(hardware) -> None:  # type: ignore[no-untyped-def]
    for rows in SIZES:
        for columns in SIZES:
            for inner in SIZES:
                time_us = gemm_us(hardware, rows, columns, inner, element_bytes=2)
                limit_us = 2.0 * rows * columns * inner / (hardware.peak_tflops * 1e6 * hardware.gemm_efficiency)
                moved = 2 * (rows * inner + inner * columns + rows * columns)
                assert time_us >= limit_us
                assert time_us >= moved / (hardware.memory_gbyte_per_s * 1e3)
                assert time_us >= hardware.kernel_launch_us


def test_a_large_product_comes_near_to_the_stated_efficiency() -> None:
    assert gemm_efficiency(A100, 16384, 16384, 16384) == pytest.approx(A100.gemm_efficiency, rel=0.03)
    assert gemm_us(A100, 8192, 8192, 8192, element_bytes=2) == pytest.approx(2 * 8192**3 / (312e6 * 0.72), rel=0.08)


def test_edges_and_waves_cost() -> None:
    # One tile too many for a wave of 108 multiprocessors, and one row too many for a tile.
    full = gemm_efficiency(A100, 108 * 128, 256, 4096)
    assert full == pytest.approx(A100.gemm_efficiency, rel=0.02)
    assert gemm_efficiency(A100, 109 * 128, 256, 4096) < 0.85 * full
    assert gemm_efficiency(A100, 64, 64, 4096) < 0.1 * full
    assert gemm_efficiency(A100, 4096, 4096, 64) < 0.6 * gemm_efficiency(A100, 4096, 4096, 4096)


def test_a_thin_product_is_bound_by_memory() -> None:
    moved = 2 * (8192 * 8192 + 2 * 8192)
    assert gemm_us(A100, 1, 8192, 8192, element_bytes=2) == pytest.approx(moved / A100.memory_bytes_per_us, rel=1e-9)
    assert gemm_us(A100, 8, 8, 8, element_bytes=2) == A100.kernel_launch_us
    square = 2048**2
    added = gemm_us(A100, 2048, 2048, 16, element_bytes=2, adds_in_fp32=True)
    assert added == pytest.approx((2 * 2 * 2048 * 16 + 8 * square) / A100.memory_bytes_per_us, rel=1e-9)


def test_memory_bound_kernels_have_a_floor_each() -> None:
    assert memory_us(A100, 1000, kernels=3) == 3 * A100.kernel_launch_us
    assert memory_us(A100, 2039e9 * 0.85) == pytest.approx(1e6)


def test_flash_attention_beats_the_unfused_one_and_grows_with_the_square() -> None:
    shape = {"sequences": 2, "heads": 16, "channels": 128}
    short, long = (flash_attention_us(A100, tokens=tokens, **shape) for tokens in (4096, 8192))
    assert 3.5 < long / short < 4.0
    unfused = unfused_attention_us(A100, tokens=4096, element_bytes=2, **shape)
    assert unfused > 2 * short
    backward = flash_attention_us(A100, tokens=4096, backward=True, **shape)
    assert backward / short == pytest.approx(2.5 * 0.66 / 0.56)
    # FlashAttention-2 on an A100, causal, 4096 tokens, heads of 128 channels: about 185 TFLOP/s forward.
    tflops = 4 * 2 * 16 * 4096**2 * 128 / 2 / short / 1e6
    assert 165 < tflops < 205


@pytest.mark.parametrize("ranks", [2, 4, 8, 16, 64])
def test_all_reduce_tends_to_its_bandwidth(ranks: int) -> None:
    group = RankGroup(ranks=ranks, stride=1, gpus_per_node=8)
    nbytes = 1 << 36
    expected_us = 2 * (ranks - 1) / ranks * nbytes / group_bytes_per_us(A100, group)
    assert collective_us(A100, group, ALL_REDUCE, nbytes) == pytest.approx(expected_us, rel=1e-3)
    for name in (ALL_GATHER, REDUCE_SCATTER):
        assert collective_us(A100, group, name, nbytes) == pytest.approx(expected_us / 2, rel=1e-3)


def test_small_collectives_are_bound_by_latency() -> None:
    times = [collective_us(A100, RankGroup(ranks=n, stride=1, gpus_per_node=8), ALL_REDUCE, 8) for n in (2, 8)]
    assert 8 < times[0] < 12 and 12 < times[1] < 25
    assert collective_us(A100, RankGroup(ranks=1, stride=1, gpus_per_node=8), ALL_REDUCE, 1 << 30) == 0.0
    # A tree is logarithmic where a ring is not.
    many = collective_us(A100, RankGroup(ranks=512, stride=1, gpus_per_node=8), ALL_REDUCE, 8)
    assert many == pytest.approx(8 + 2 * 9 * 5, rel=0.01)


def test_groups_on_nodes() -> None:
    def group(ranks: int, stride: int) -> tuple[int, int]:
        found = RankGroup(ranks=ranks, stride=stride, gpus_per_node=8)
        return found.per_node, found.nodes

    assert group(8, 1) == (8, 1)
    assert group(16, 1) == (8, 2)
    assert group(4, 2) == (4, 1)
    assert group(8, 4) == (2, 4)
    assert group(4, 8) == (1, 4)
    assert group(2, 64) == (1, 2)


def test_a_ring_through_nodes_shares_the_network() -> None:
    wide = RankGroup(ranks=16, stride=1, gpus_per_node=8)
    assert group_bytes_per_us(A100, wide) == pytest.approx(1600e9 / 8 * 0.85 / 1e6)
    narrow = RankGroup(ranks=4, stride=8, gpus_per_node=8)
    assert group_bytes_per_us(A100, narrow) == pytest.approx(1600e9 / 8 * 0.85 / 8 / 1e6)
    fast = dataclasses.replace(A100, network_gbit_per_s_per_node=1e5)
    assert group_bytes_per_us(fast, wide) == A100.node_bytes_per_us


def test_all_to_all_is_bound_by_its_slower_part() -> None:
    near = RankGroup(ranks=8, stride=1, gpus_per_node=8)
    nbytes = 1 << 30
    time_us = collective_us(A100, near, ALL_TO_ALL, nbytes)
    assert time_us == pytest.approx(9 + 7 / 8 * nbytes / A100.node_bytes_per_us)
    far = RankGroup(ranks=16, stride=1, gpus_per_node=8)
    slow_us = collective_us(A100, far, ALL_TO_ALL, nbytes)
    assert slow_us == pytest.approx(13 + nbytes / 2 / A100.network_bytes_per_us)


def test_fits_give_back_the_times() -> None:
    for within in (True, False):
        fit = send_fit(A100, within_node=within)
        for nbytes in (1 << 18, 1 << 22, 1 << 28):
            expected_us = send_us(A100, nbytes, within_node=within)
            assert fit.alpha_us + nbytes * fit.beta_us_per_byte == pytest.approx(expected_us, rel=1e-9)
    group = RankGroup(ranks=8, stride=1, gpus_per_node=8)
    fit = collective_fit(A100, group, ALL_REDUCE)
    for nbytes, time_us in fit.points:
        assert time_us == collective_us(A100, group, ALL_REDUCE, nbytes)
        assert fit.alpha_us + nbytes * fit.beta_us_per_byte == pytest.approx(time_us, rel=0.1)
    assert math.isclose(fit.beta_us_per_byte, 2 * 7 / 8 / A100.node_bytes_per_us, rel_tol=0.1)
