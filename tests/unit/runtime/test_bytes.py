"""Kept, dropped and prefetched bytes equal the formula, and the memory is really given back."""

import pytest
import torch
from torch import nn

from overlap_recompute.runtime import Policy
from tests.unit.runtime.cases import Unit
from tests.unit.runtime.models import MlpBlock, Stack
from tests.unit.runtime.support import LiveStorages, attached, limited, never

UNITS = ["blocks.*.norm", "blocks.*.fc1", "blocks.*.act"]
ROWS, WIDTH, LAYERS = 4, 16, 3
FLOAT = 4


class PlainBlock(nn.Module):
    """x + fc2(gelu(fc1(norm(x)))): a block whose saved tensors can be counted by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.act = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


def stack() -> Stack:
    return Stack(*(PlainBlock(WIDTH) for _ in range(LAYERS)))


INPUT = ROWS * WIDTH * FLOAT
STATISTICS = 2 * ROWS * FLOAT
NORM = ROWS * WIDTH * FLOAT
FC1 = ACT = ROWS * 2 * WIDTH * FLOAT

# Per layer: (kept, dropped). The layer's input is kept by whoever saves it or takes it as an argument.
FORMULA = {
    (): (INPUT + STATISTICS + NORM + FC1 + ACT, 0),
    ("norm",): (INPUT + FC1 + ACT, STATISTICS + NORM),
    ("act",): (INPUT + STATISTICS + NORM + FC1, ACT),
    ("fc1",): (INPUT + STATISTICS + NORM + ACT, FC1),
    ("norm", "act"): (INPUT + FC1, STATISTICS + NORM + ACT),
    ("norm", "fc1", "act"): (INPUT, STATISTICS + NORM + FC1 + ACT),
}


@pytest.mark.parametrize("dropped", FORMULA, ids=" ".join)
def test_bytes_equal_the_formula(dropped: tuple[str, ...]) -> None:
    model = stack()
    kept_bytes, dropped_bytes = FORMULA[dropped]
    with attached(model, Policy.recompute(*dropped), UNITS) as runtime:
        losses = []
        for key in range(2):
            with runtime.microbatch(key):
                losses.append(model(torch.randn(ROWS, WIDTH)))
            outside = INPUT  # The square in the loss saves the last output.
            assert runtime.ledger.kept_bytes == (key + 1) * (LAYERS * kept_bytes + outside)
            assert runtime.ledger.dropped_bytes == (key + 1) * LAYERS * dropped_bytes
        sum(losses).backward()
        report = runtime.step_end()
    assert {(layer.layer, layer.kept_bytes, layer.dropped_bytes) for layer in report.layers} == {
        (-1, INPUT, 0),
        *((layer, kept_bytes, dropped_bytes) for layer in range(LAYERS)),
    }
    assert report.kept_bytes == 2 * (LAYERS * kept_bytes + INPUT)
    assert (runtime.ledger.kept_bytes, runtime.ledger.dropped_bytes, runtime.ledger.recomputed_bytes) == (0, 0, 0)


def test_the_memory_is_really_given_back() -> None:
    model, x = stack(), torch.randn(ROWS, WIDTH)
    live_bytes = {}
    for dropped in FORMULA:
        with attached(model, Policy.recompute(*dropped), UNITS) as runtime, LiveStorages() as counter:
            with runtime.microbatch(0):
                loss = model(x)
            live_bytes[dropped] = counter.live_bytes
            # What autograd holds is what the ledger says, besides the loss, and the input, which we made.
            assert counter.live_bytes == runtime.ledger.kept_bytes - INPUT + FLOAT
            loss.backward()
            runtime.step_end()
    assert live_bytes[()] - live_bytes["norm", "fc1", "act"] == LAYERS * (STATISTICS + NORM + FC1 + ACT)


def test_the_peak_on_demand_is_the_kept_bytes_and_one_layer() -> None:
    model = stack()
    with attached(model, Policy.recompute("norm", "fc1", "act"), UNITS) as runtime:
        with runtime.microbatch(0):
            loss = model(torch.randn(ROWS, WIDTH))
        loss.backward()
        report = runtime.step_end()
    kept_bytes, dropped_bytes = FORMULA["norm", "fc1", "act"]
    assert report.kept_peak_bytes == LAYERS * kept_bytes + INPUT
    # The loss has let go of the last output when the first replay begins.
    assert report.held_peak_bytes == LAYERS * kept_bytes + dropped_bytes


def test_the_cap_bounds_prefetched_bytes_at_all_times() -> None:
    model = stack()
    layer_bytes = FORMULA["norm", "fc1", "act"][1]
    cap_bytes = layer_bytes + NORM + STATISTICS
    with attached(model, Policy.recompute_all(), UNITS, prefetch_cap_bytes=cap_bytes) as runtime:
        losses = []
        for key in range(2):
            with runtime.microbatch(key):
                losses.append(model(torch.randn(ROWS, WIDTH)))
        fill = runtime.queue.fill(never)
        assert (fill.units, fill.nbytes, fill.stop.name) == (4, cap_bytes, "CAP")
        assert runtime.ledger.prefetched_bytes == cap_bytes
        assert runtime.queue.fill(never).units == 0
        losses[0].backward()
        assert runtime.ledger.prefetched_bytes == 0
        assert runtime.queue.fill(never, budget_bytes=layer_bytes).nbytes == layer_bytes
        losses[1].backward()
        assert runtime.step_end().prefetched_peak_bytes == cap_bytes


def test_what_is_used_no_longer_counts_as_prefetched() -> None:
    model = stack()
    with attached(model, Policy.recompute_all(), UNITS) as runtime:
        with runtime.microbatch(0):
            loss = model(torch.randn(ROWS, WIDTH))
        runtime.queue.fill(limited(3))
        brought_back = STATISTICS + NORM + FC1 + ACT
        assert runtime.ledger.prefetched_bytes == runtime.ledger.recomputed_bytes == brought_back
        loss.backward(retain_graph=True)
        assert (runtime.ledger.prefetched_bytes, runtime.ledger.recomputed_bytes) == (0, LAYERS * brought_back)
        del loss
        runtime.step_end()


def test_a_storage_that_two_microbatches_keep_counts_once() -> None:
    model = stack()
    x = torch.randn(ROWS, WIDTH)
    with attached(model, Policy.recompute("norm"), UNITS) as runtime:
        losses = []
        for key in range(2):
            with runtime.microbatch(key):
                losses.append(model(x))
        assert runtime.ledger.kept_bytes == 2 * (LAYERS * (INPUT + FC1 + ACT) + INPUT) - INPUT
        sum(losses).backward()
        runtime.step_end()


def test_what_is_released_before_the_forward_pass_ends_does_not_count() -> None:
    add = Unit(lambda weight, x: x + weight)
    x = torch.randn(ROWS, 4)
    with attached(nn.ModuleList([add]), Policy.recompute_all(), ["*"]) as runtime:
        with runtime.microbatch(0):
            output = add(-x)
            assert runtime.ledger.kept_bytes == ROWS * 4 * FLOAT, "the argument, as long as the output may be saved"
            square = output**2
            assert runtime.ledger.dropped_bytes == ROWS * 4 * FLOAT
            del square
            assert runtime.ledger.dropped_bytes == 0
        assert runtime.ledger.kept_bytes == 0, "nobody can save the output any more"
        output.sum().backward()
        report = runtime.step_end()
    assert (report.kept_bytes, report.dropped_bytes) == (0, 0)
    assert report.kept_peak_bytes == ROWS * 4 * FLOAT


def test_dropout_masks_are_dropped() -> None:
    model = Stack(MlpBlock(WIDTH))
    with attached(model, Policy.recompute("act", "drop"), ["blocks.*.act", "blocks.*.drop"]) as runtime:
        with runtime.microbatch(0):
            loss = model(torch.randn(ROWS, WIDTH))
        rows = ROWS * 2 * WIDTH
        (layer,) = (layer for layer in _layers(runtime) if layer[0] == 0)
        assert layer[1] >= rows * FLOAT + rows * FLOAT, "the outputs of act and drop, and the mask"
        loss.backward()
        runtime.step_end()


def _layers(runtime: object) -> list[tuple[int, int]]:
    (microbatch,) = runtime.queue.microbatches()  # type: ignore[attr-defined]
    return [(layer, dropped_bytes) for layer, _, dropped_bytes in microbatch.totals]
