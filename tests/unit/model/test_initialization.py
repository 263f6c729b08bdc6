"""Initial weights by name: what they depend on, and what not."""

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron.pretrain.model import build_model, build_transformer_config
from megatron.pretrain.model.initialization import _draw_into, draw_block, untouched_generators
from tests.unit.model.support import CPU, EXPERTS, LLAMA, VOCAB, config_of

pytestmark = pytest.mark.usefixtures("rank")
Weights = dict[str, torch.Tensor]


def weights(*flags: str, vocab_size: int = VOCAB) -> Weights:
    config = config_of(*flags)
    (model,) = build_model(config, build_transformer_config(config), vocab_size, CPU)
    return {name: parameter.detach().clone() for name, parameter in model.module.named_parameters()}


def test_same_seed_same_weights_other_seed_others() -> None:
    torch.manual_seed(1)
    first = weights(EXPERTS)
    torch.manual_seed(2)  # the global generator has no part in it
    second = weights(EXPERTS)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights(EXPERTS, "--seed 7")
    drawn = [name for name in first if not torch.equal(first[name], other[name])]
    assert {name for name, value in first.items() if value.dim() > 1} <= set(drawn)
    assert any(name.endswith("router.bias") for name in drawn)


def test_building_leaves_the_generators() -> None:
    before = torch.get_rng_state()
    weights()
    assert torch.equal(torch.get_rng_state(), before)
    with untouched_generators():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_padding_rows_change_no_other_row() -> None:
    small, large = weights(vocab_size=64), weights(vocab_size=80)
    name = "embedding.word_embeddings.weight"
    assert torch.equal(small[name], large[name][:64])
    assert all(torch.equal(small[key], large[key]) for key in small if key != name)


@pytest.mark.parametrize("flags", [f"{LLAMA} --num-layers 8 --hidden-size 64 --init-method-std 0.05"])
def test_deviation_by_role(flags: str) -> None:
    for name, value in weights(flags, vocab_size=512).items():
        if value.dim() == 1:
            assert torch.equal(value, torch.ones_like(value)), name  # RMSNorm
            continue
        projection = "linear_proj" in name or "linear_fc2" in name
        expected = 0.05 / 4 if projection else 0.05  # sqrt(2 * 8 layers) = 4
        assert value.std().item() == pytest.approx(expected, rel=0.06), name
        assert abs(value.mean().item()) < 5 * expected / value.numel() ** 0.5, name


def test_no_two_weights_are_alike() -> None:
    seen = [value.flatten()[:32].tolist() for value in weights(EXPERTS).values() if value.dim() > 1]
    assert len({tuple(values) for values in seen}) == len(seen) > 12


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_shards_are_parts_of_the_whole(axis: int, ranks: int) -> None:
    def shard(rank: int, count: int) -> torch.Tensor:
        shape = [48, 48]
        shape[axis] //= count
        data = torch.zeros(shape)
        offsets = ((0, 5, 9), (axis + 1, rank, count))  # layer 5 of 9, then the split of the tensor itself
        _draw_into(ShardedTensor.from_rank_offsets("key", data, *offsets, prepend_axis_num=1), 0.5, seed=3)
        return data

    whole = shard(0, 1)
    assert torch.equal(torch.cat([shard(rank, ranks) for rank in range(ranks)], dim=axis), whole)
    assert whole.std().item() == pytest.approx(0.5, rel=0.05)


def test_values_are_frozen() -> None:
    """A change here changes every run's starting point: it needs a line in the change log."""
    values = draw_block("decoder.layers.mlp.linear_fc1.weight.0", 1, (2,), seed=1234)
    assert values.shape == (16, 2)
    assert values[0].tolist() == [-1.0700987577438354, -0.16353198885917664]
