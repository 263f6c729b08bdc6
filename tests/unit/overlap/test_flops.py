"""Floating-point operations of one whole step of a real model: those of the units that come back, and no others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import RowParallelLinear
from torch.utils.flop_counter import FlopCounterMode

from megatron.overlap.session import OverlapSession
from overlap_recompute.plan.windows import WindowKind
from tests.unit.model.support import EXPERTS, LLAMA, batch
from tests.unit.overlap.support import Chunks, forward_backward, model_of, session_of, settings_of
from tests.unit.overlap.test_windows import FakeWork

LAYERS, TOKENS, WIDTH, INNER, SEQUENCE = 2, 2 * 16, 32, 128, 16
PRODUCTS = {
    "linear_qkv": 2 * TOKENS * WIDTH * 3 * WIDTH,
    "core_attention": 2 * 2 * TOKENS * SEQUENCE * WIDTH,
    "linear_fc1": 2 * TOKENS * WIDTH * INNER,
}
"""Of one layer and microbatch; the other units compute no matrix product."""
ROW_PARALLEL = 2 * TOKENS * WIDTH * (WIDTH + INNER)
"""The products behind attention and behind the activation, which only a stock replay repeats."""
UNFUSED = "--attention-backend unfused"
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
MICROBATCHES = 2


def flops_of(chunks: Chunks, policy: str, step: Callable[..., None] = forward_backward) -> int:
    with session_of(chunks, settings_of(policy)) as session, FlopCounterMode(display=False) as counter:
        step(session, chunks[0], MICROBATCHES)
    return int(counter.get_total_flops()) // MICROBATCHES


def overlapped(session: OverlapSession, chunk: Any, microbatches: int) -> None:
    """A step in whose windows everything comes back before backward begins."""
    chunk.zero_grad_buffer()
    step = session.forward_step(lambda iterator, model: (model(**batch()), None))
    with session.step():
        for _ in range(microbatches):
            output, _ = step(None, chunk)
            session.windows.finish(WindowKind.PP_WAIT, FakeWork(polls=100), pollable=True)
            output.sum().backward()
            del output
    figures = session.figures.take()
    assert figures["overlap/hidden_recompute_ms"] > 0 and figures["overlap/exposed_recompute_ms"] == 0


def test_a_replay_computes_the_dropped_units_and_nothing_else(rank: None) -> None:
    chunks = model_of(UNFUSED)
    flops = {policy: flops_of(chunks, policy) for policy in ("none", "all", *PRODUCTS)}
    for unit, product in PRODUCTS.items():
        assert flops[unit] == flops["none"] + LAYERS * product
    assert flops["all"] == flops["none"] + LAYERS * sum(PRODUCTS.values())
    assert flops_of(chunks, "all", overlapped) == flops["all"], "as many hidden as on demand"


def test_stock_full_recompute_repeats_the_row_parallel_products_as_well(rank: None) -> None:
    none, ours = (flops_of(model_of(UNFUSED), policy) for policy in ("none", "all"))
    chunk = model_of(UNFUSED, FULL)[0]
    with FlopCounterMode(display=False) as counter:
        chunk(**batch()).sum().backward()
    assert counter.get_total_flops() == none + LAYERS * (sum(PRODUCTS.values()) + ROW_PARALLEL)
    assert none < ours < counter.get_total_flops()


@contextmanager
def counted_row_parallel(session: OverlapSession, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """One entry for each product: whether it ran in a replay."""
    stock, seen = RowParallelLinear._forward_impl, []

    def forward(linear: Any, *args: Any, **options: Any) -> torch.Tensor:
        seen.append(session.runtime.replaying)
        return stock(linear, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RowParallelLinear, "_forward_impl", forward)
        yield seen


@pytest.mark.parametrize("flags", ["", LLAMA, f"{EXPERTS} --disable-bias-linear"], ids=["gpt", "llama", "experts"])
def test_no_row_parallel_product_runs_in_a_replay(rank: None, flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = model_of(flags)
    with session_of(chunks) as session, counted_row_parallel(session, monkeypatch) as seen:
        forward_backward(session, chunks[0])
    linears = sum(isinstance(module, RowParallelLinear) for module in chunks[0].modules())
    assert len(seen) == linears > LAYERS and not any(seen)
