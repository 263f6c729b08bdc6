"""What else is counted: parameters, ends, boundaries, stock recomputation; and the formula for dense layers agrees."""

import itertools
import resource
import time
from dataclasses import replace

import pytest

from megatron.overlap.counting.command import config_of as config_of_run
from megatron.overlap.counting.command import least_world_size
from megatron.overlap.counting.cuda import as_on_cuda, shape_of_layer
from megatron.overlap.counting.model import count
from megatron.overlap.counting.stock import under_full_recompute
from megatron.overlap.measuring.structure import fingerprint_of
from overlap_recompute.plan.counted import CountedModel, memory_profile
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.kept_bytes import kept_bytes
from overlap_recompute.plan.memory import layer_working_set_bytes
from overlap_recompute.plan.storages import kept_bytes_of
from tests.unit.model.support import LLAMA, SHAPE, VOCAB, config_of, one_rank
from tests.unit.overlap.support import model_of

WIDTH_BYTES = 16 * 2 * 32 * 4
NOTHING: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def gpt() -> CountedModel:
    return count(config_of(), VOCAB)


def test_parameters_and_fingerprints_are_those_of_the_real_model(gpt: CountedModel) -> None:
    with one_rank():
        (chunk,) = model_of()
        layers = list(chunk.module.decoder.layers)
        real = sum(parameter.numel() for parameter in chunk.parameters())
        marks = {fingerprint_of(layer) for layer in layers}
    kind = gpt.kinds[0]
    assert marks == {kind.fingerprint}
    assert kind.parameters * 2 + gpt.embedding.parameters + gpt.head.parameters - gpt.tied_parameters == real
    assert gpt.tied_parameters == VOCAB * 32


def test_the_tensor_between_stages_is_one_width(gpt: CountedModel) -> None:
    assert gpt.boundary_bytes == WIDTH_BYTES


@pytest.mark.parametrize("flags", ["", f"{LLAMA.replace(' --qk-layernorm', '')} --bf16"])
def test_the_formula_of_a_dense_layer_agrees(flags: str) -> None:
    config = config_of(flags)
    kind = count(config, VOCAB).kinds[0]
    units = [unit.name for unit in kind.units]
    for size in range(len(units) + 1):
        for choice in itertools.combinations(units, size):
            assert kept_bytes_of(kind.storages, set(choice)) == kept_bytes(shape_of_layer(config), set(choice)), choice


def test_backward_holds_gradients_besides(gpt: CountedModel) -> None:
    """At least the gradient of what linear_fc1 put out and that of what goes into linear_fc2, both four widths."""
    assert gpt.kinds[0].transient_bytes >= 2 * 4 * WIDTH_BYTES
    (kind,) = memory_profile(gpt).kinds
    feed_forward = {"pre_mlp_layernorm", "linear_fc1", "activation"}
    # Where most lives besides, one width of the norm's and four of linear_fc1 are back, and the activation's have gone;
    # the attention's units, dropped as well, come back when these are gone.
    alone = layer_working_set_bytes(kind, feed_forward)
    assert kind.transient_bytes + 5 * WIDTH_BYTES <= alone < kind.transient_bytes + 6 * WIDTH_BYTES
    # Without steps the activation's four widths count at the same time.
    assert layer_working_set_bytes(replace(kind, backward_memory=None), feed_forward) == alone + 4 * WIDTH_BYTES
    assert alone == layer_working_set_bytes(kind, {*feed_forward, "linear_qkv", "core_attention"})


def test_the_head_needs_room_for_its_logits(gpt: CountedModel) -> None:
    logits_bytes = 16 * 2 * VOCAB * 4
    assert gpt.head.kept_bytes >= logits_bytes
    assert gpt.head.transient_bytes >= logits_bytes


def test_whole_layers_under_stock_recompute(gpt: CountedModel) -> None:
    every = "--recompute-granularity full --recompute-method uniform --recompute-num-layers"
    one = under_full_recompute(gpt, config_of(f"{every} 1"))
    assert one.layers == (0, 0)
    assert kept_bytes_of(one.kinds[0].storages, NOTHING) == WIDTH_BYTES
    whole = kept_bytes_of(gpt.kinds[0].storages, NOTHING)
    assert one.kinds[0].transient_bytes == gpt.kinds[0].transient_bytes + whole - WIDTH_BYTES
    both = under_full_recompute(gpt, config_of(f"{every} 2"))
    assert [kept_bytes_of(both.kind_of(layer).storages, NOTHING) for layer in (0, 1)] == [WIDTH_BYTES, 0]
    assert both.kind_of(1).transient_bytes == gpt.kinds[0].transient_bytes + 2 * whole - WIDTH_BYTES
    block = config_of("--recompute-granularity full --recompute-method block --recompute-num-layers 1")
    half = under_full_recompute(gpt, block)
    assert [kept_bytes_of(half.kind_of(layer).storages, NOTHING) for layer in (0, 1)] == [WIDTH_BYTES, whole]


def test_stock_selective_recompute_is_run_as_it_is(gpt: CountedModel) -> None:
    flags = "--recompute-granularity selective --recompute-modules core_attn --attention-backend unfused"
    plain = count(config_of("--attention-backend unfused"), VOCAB).kinds[0]
    selective = count(config_of(flags), VOCAB).kinds[0]
    scores_bytes = 2 * 4 * 16 * 16 * 4
    saved = kept_bytes_of(plain.storages, NOTHING) - kept_bytes_of(selective.storages, NOTHING)
    assert saved >= scores_bytes
    norms = count(config_of("--recompute-granularity selective --recompute-modules layernorm"), VOCAB).kinds[0]
    # Two outputs of norms are emptied after their use.
    assert (
        kept_bytes_of(norms.storages, NOTHING) <= kept_bytes_of(gpt.kinds[0].storages, NOTHING) - 2 * WIDTH_BYTES + 512
    )


def test_kernels_of_a_gpu(gpt: CountedModel) -> None:
    config = config_of(LLAMA.replace(" --qk-layernorm", ""), "--bf16")
    on_cpu = count(config, VOCAB)
    on_gpu = as_on_cuda(on_cpu, config)
    assert on_gpu.device == "cuda"
    # A fused RMSNorm keeps no scaled input.
    less = kept_bytes_of(on_cpu.kinds[0].storages, NOTHING) - kept_bytes_of(on_gpu.kinds[0].storages, NOTHING)
    assert less > 2 * WIDTH_BYTES
    with pytest.raises(ConfigError, match="count with --device cpu"):
        as_on_cuda(on_cpu, replace(config, moe=replace(config.moe, num_experts=4)))


def test_a_model_of_23_billion_parameters_is_counted_in_seconds_and_without_its_memory() -> None:
    flags = (
        "--model-preset gpt-23b --bf16 --micro-batch-size 1 --global-batch-size 64 --train-iters 1 --lr 1e-4 "
        "--mock-data --vocab-size 50257 --tensor-model-parallel-size 8 --pipeline-model-parallel-size 4"
    )
    config = config_of_run(flags.split(), 0)
    vocabulary, width, sequence = 51200, 7168, 2048
    begin_s, before_kib = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counted = count(config, vocabulary)
    assert time.process_time() - begin_s < 30
    # One layer's weights of one rank alone would be 147 MiB, its activations four times that.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 128 << 10
    (kind,) = counted.kinds
    products = 12 * width**2 // 8
    biases_and_norms = (3 + 4) * width // 8 + 6 * width
    assert kind.parameters == products + biases_and_norms and len(counted.layers) == 36
    whole = 8 * products * 36 + vocabulary * width
    assert 22e9 < whole < 24e9
    assert counted.boundary_bytes == sequence * width * 2
    assert kept_bytes_of(kind.storages, NOTHING) == kept_bytes(shape_of_layer(config), set())


def test_as_many_ranks_as_the_layout_takes() -> None:
    layout = "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --global-batch-size 8"
    config = config_of_run([*SHAPE.split(), *layout.split()], 0)
    assert config.world.world_size == least_world_size(config) == 4
    with pytest.raises(ConfigError, match="a multiple of 4"):
        config_of_run([*SHAPE.split(), *layout.split()], 6)
