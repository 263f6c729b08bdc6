"""Layers of the analytic model: against published measurements, FLOPs and the table of kept bytes."""

import dataclasses
from collections.abc import Iterable

import pytest

from overlap_recompute.plan.kept_bytes import UNFUSED, LayerShape, kept_bytes
from overlap_recompute.plan.layer_units import LAYER_UNITS
from overlap_recompute.plan.profile import COMPUTE, LayerKind, PassStep
from overlap_recompute.plan.storages import kept_bytes_of
from overlap_recompute.simulator.analytic import pass_us
from overlap_recompute.simulator.analytic_ends import embedding_cost, head_cost
from overlap_recompute.simulator.analytic_layers import dense_layer
from overlap_recompute.simulator.analytic_links import RankGroup
from overlap_recompute.simulator.analytic_moe import Mixture, mixture_layer
from overlap_recompute.simulator.analytic_update import StageWork, update_us
from overlap_recompute.simulator.hardware_table import A100_80GB_NVLINK as A100
from overlap_recompute.simulator.hardware_table import A100_80GB_PCIE
from tests.unit.simulator.sites import gpt_shape, site_of

LLAMA = LayerShape(
    sequence=4096, micro_batch=1, hidden=4096, ffn_hidden=14336, heads=32, groups=8, channels=128, element_bytes=2,
    rms_norm=True, rotary=True, gated=True, biased=False, fused_activation=True, tensor_parallel=2, backend="cuda",
)  # fmt: skip
SHARED = dataclasses.replace(LLAMA, sequence_parallel=True)


def layer(shape: LayerShape, hardware=A100) -> LayerKind:  # type: ignore[no-untyped-def]
    return dense_layer(site_of(hardware, shape), "test")


def mixture(shape: LayerShape, expert_parallel: int) -> LayerKind:
    group = RankGroup(ranks=expert_parallel, stride=shape.tensor_parallel, gpus_per_node=8)
    return mixture_layer(site_of(A100, shape), Mixture(experts=8, per_token=2, group=group), "test")


def windows(steps: Iterable[PassStep]) -> list[tuple[str, str]]:
    return [(step.kind, step.name) for step in steps if step.kind != COMPUTE]


@pytest.mark.parametrize(("sequence_parallel", "forward_ms", "backward_ms"), [(False, 7.7, 11.9), (True, 7.2, 11.8)])
def test_a_layer_of_22b_takes_as_long_as_published(
    sequence_parallel: bool, forward_ms: float, backward_ms: float
) -> None:
    """Table 4 of arXiv 2205.05198: 8 A100, micro-batch 4, dropout, attention not fused."""
    shape = gpt_shape(
        6144, 64, 8, 4, core=UNFUSED, attention_dropout=True, hidden_dropout=True, sequence_parallel=sequence_parallel
    )
    kind = layer(shape)
    assert pass_us(kind.forward) == pytest.approx(forward_ms * 1e3, rel=0.05)
    assert pass_us(kind.backward) == pytest.approx(backward_ms * 1e3, rel=0.05)


def test_backward_does_twice_the_products_of_forward() -> None:
    slow = dataclasses.replace(A100, peak_tflops=1.0, streaming_multiprocessors=1, memory_gbyte_per_s=1e9)
    kind = layer(gpt_shape(4096, 32, 1, 1), slow)
    names = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
    forward_us = sum(step.duration_us for step in kind.forward if step.name in names)
    backward_us = sum(step.duration_us for step in kind.backward if step.name.split(" ")[0] in names)
    # Equal but for the ramp along the inner dimension, which differs between the three products.
    assert backward_us == pytest.approx(2 * forward_us, rel=0.02)
    flops = 2 * 2048 * (4 * 4096**2 + 8 * 4096**2)
    assert forward_us == pytest.approx(flops / (1e6 * slow.gemm_efficiency), rel=0.02)


@pytest.mark.parametrize("shape", [LLAMA, SHARED, gpt_shape(4096, 32, 4, 2)])
def test_kept_bytes_are_those_of_the_table(shape: LayerShape) -> None:
    kind = layer(shape)
    for dropped in (set(), set(LAYER_UNITS), {"linear_fc1", "activation"}, {"core_attention"}):
        assert kept_bytes_of(kind.storages, dropped) == kept_bytes(shape, dropped)


def test_a_gpt_layer_keeps_what_the_literature_counts() -> None:
    """Equation 1 of arXiv 2205.05198: 34 s b h + 5 a s^2 b bytes with dropout and unfused attention, one rank."""
    shape = gpt_shape(1024, 16, 1, 2, core=UNFUSED, attention_dropout=True, hidden_dropout=True)
    counted = 34 * 2048 * 2 * 1024 + 5 * 16 * 2048**2 * 2
    assert kept_bytes(shape, set()) == pytest.approx(counted, rel=0.001)


def test_windows_without_a_shared_sequence() -> None:
    kind = layer(LLAMA)
    assert windows(kind.forward) == [("tp_forward", "all_reduce")] * 2
    assert windows(kind.backward) == [("tp_backward", "all_reduce")] * 2
    assert all(step.payload_bytes == 4096 * 4096 * 2 for step in (*kind.forward, *kind.backward) if step.payload_bytes)
    assert windows((*layer(dataclasses.replace(LLAMA, tensor_parallel=1)).forward,)) == []


def test_windows_with_a_shared_sequence() -> None:
    kind = layer(SHARED)
    assert windows(kind.forward) == [("tp_forward", "all_gather"), ("tp_forward", "reduce_scatter")] * 2
    block = [("tp_backward", name) for name in ("all_gather", "all_gather", "reduce_scatter")]
    assert windows(kind.backward) == block * 2
    refused = {unit.name for unit in kind.units if unit.refusal}
    assert refused == {"linear_qkv", "linear_fc1"}
    assert not any(unit.refusal for unit in layer(LLAMA).units)


def test_only_what_the_weight_gradient_does_not_hide_is_exposed() -> None:
    for shape in (LLAMA, SHARED):
        steps = layer(shape, A100_80GB_PCIE).backward
        for place, step in enumerate(steps):
            if step.kind == COMPUTE or "wgrad" not in steps[place - 1].name:
                continue
            assert step.hidden_us == pytest.approx(min(steps[place - 1].duration_us, step.hidden_us + step.duration_us))
    slow = sum(step.duration_us for step in layer(LLAMA, A100_80GB_PCIE).backward if step.kind != COMPUTE)
    assert slow > 1000
    assert sum(step.duration_us for step in layer(LLAMA).backward if step.kind != COMPUTE) == 0


def test_tensor_parallel_traffic_weighs_more_on_pcie() -> None:
    def share(hardware) -> float:  # type: ignore[no-untyped-def]
        kind = layer(gpt_shape(5120, 40, 4, 2), hardware)
        steps = (*kind.forward, *kind.backward)
        return sum(step.duration_us for step in steps if step.kind != COMPUTE) / pass_us(steps)

    assert share(A100) < 0.1
    assert 0.35 < share(A100_80GB_PCIE) < 0.75


def test_every_step_says_what_it_needs() -> None:
    kind = layer(LLAMA)
    units = {unit.name for unit in kind.units}
    assert [unit.name for unit in kind.units] == list(LAYER_UNITS)
    assert {need for step in kind.backward for need in step.needs} == units
    first = {need: place for place, step in reversed(list(enumerate(kind.backward))) for need in step.needs}
    order = sorted(units, key=lambda name: first[name])
    assert order[:3] == ["activation", "linear_fc1", "pre_mlp_layernorm"]
    assert order[-1] == "input_layernorm"
    for unit in kind.units:
        assert unit.forward_us == next(step.duration_us for step in kind.forward if step.name == unit.name)


def test_parameters_of_all_ranks_are_those_of_the_layer() -> None:
    whole = layer(dataclasses.replace(LLAMA, tensor_parallel=1)).parameters
    assert whole == 4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336 + 2 * 4096
    assert 2 * layer(LLAMA).parameters == whole + 2 * 4096, "norms are on both ranks"
    assert layer(gpt_shape(1024, 16, 1, 1)).parameters == 12 * 1024**2 + 13 * 1024


def test_a_mixture_exchanges_tokens_and_keeps_what_reaches_its_experts() -> None:
    alone = dataclasses.replace(LLAMA, tensor_parallel=1)
    kind = mixture(alone, 8)
    assert windows(kind.forward) == [("ep", "all_to_all")] * 2
    assert windows(kind.backward) == [("ep", "all_to_all")] * 2
    assert windows(mixture(alone, 1).forward) == []
    assert kind.expert_parameters == 3 * 4096 * 14336
    assert kind.parameters + 8 * kind.expert_parameters == mixture(alone, 1).parameters + 8 * 3 * 4096 * 14336
    rows = 4096 * 2
    dropped = kept_bytes_of(kind.storages, set()) - kept_bytes_of(kind.storages, {"linear_fc1", "activation"})
    assert dropped == rows * 3 * 14336 * 2
    assert next(unit for unit in kind.units if unit.name == "linear_fc1").reads == ()


def test_a_mixture_with_tensor_parallelism_gathers_rows() -> None:
    kind = mixture(SHARED, 4)
    exchange = [name for window, name in windows(kind.forward) if window == "ep"]
    assert exchange == ["all_to_all", "all_gather", "reduce_scatter", "all_to_all"]
    # The same products on all ranks together, whichever way they are shared.
    product = "linear_fc2"
    both = [next(s.duration_us for s in k.forward if s.name == product) for k in (kind, mixture(SHARED, 1))]
    assert both[0] < both[1]


def test_an_iteration_of_22b_takes_as_long_as_published() -> None:
    """Table 5 of arXiv 2205.05198: 1.10 s for four sequences on 8 A100 with a shared sequence, attention recomputed."""
    shape = gpt_shape(6144, 64, 8, 4, core=UNFUSED, attention_dropout=True, hidden_dropout=True, sequence_parallel=True)
    site, kind = site_of(A100, shape), layer(shape)
    replay_us = next(unit.forward_us for unit in kind.units if unit.name == "core_attention")
    ends = (embedding_cost(site, 51200, 2048), head_cost(site, 51200))
    work = StageWork(
        parameters=48 * kind.parameters + ends[0].parameters,
        expert_parameters=0,
        forward_us=0.0,
        backward_us=0.0,
    )
    alone = RankGroup(ranks=1, stride=8, gpus_per_node=8)
    layers_us = 48 * (pass_us(kind.forward) + pass_us(kind.backward) + replay_us)
    ends_us = sum(pass_us(end.forward) + pass_us(end.backward) for end in ends)
    optimizer_us = update_us(A100, work, alone, alone, weight_bytes=2, distributed=False, overlap=False)
    assert layers_us + ends_us + optimizer_us == pytest.approx(1.10e6, rel=0.07)


@pytest.mark.parametrize("shape", [LLAMA, SHARED])
def test_the_head_reduces_three_small_tensors(shape: LayerShape) -> None:
    head = head_cost(site_of(A100, shape), 128256)
    small = [step for step in head.forward if step.name == "all_reduce"]
    assert [step.payload_bytes for step in small] == [4096 * 4] * 3
    last = ["all_gather", "reduce_scatter"] if shape.sequence_parallel else ["all_reduce"]
    assert [name for _, name in windows(head.backward)] == last
    assert head.parameters == 128256 // 2 * 4096 + 4096
    assert head.kept_bytes > 4096 * 128256 // 2 * 4
    embedding = embedding_cost(site_of(A100, shape), 128256, 0)
    assert windows(embedding.forward) == [("tp_forward", "reduce_scatter" if shape.sequence_parallel else "all_reduce")]
    assert embedding.parameters == 128256 // 2 * 4096
