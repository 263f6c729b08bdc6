"""FlashCoreAttention against the stock attention, and what it does beyond it."""

import math
from types import SimpleNamespace

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import checkpoint, get_cuda_rng_tracker
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.pretrain.model.attention import FlashCoreAttention, zigzag_places
from overlap_recompute.plan.errors import ConfigError, UserError

pytestmark = pytest.mark.usefixtures("rank")
SEQUENCE, BATCH, HEADS, CHANNELS = 12, 2, 4, 8


def attention(kind: type = FlashCoreAttention, dropout: float = 0.0, scale: float | None = None, **options: object):
    config = TransformerConfig(
        num_layers=1, hidden_size=HEADS * CHANNELS, num_attention_heads=HEADS, attention_dropout=dropout, **options
    )
    return kind(
        config=config, layer_number=1, attn_mask_type=AttnMaskType.causal, attention_type="self", softmax_scale=scale
    )


def inputs(groups: int = HEADS, value_channels: int = CHANNELS, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((HEADS, CHANNELS), (groups, CHANNELS), (groups, value_channels))
    return [
        torch.randn(SEQUENCE, BATCH, *shape, generator=generator).requires_grad_(True)  # fmt: skip
        for shape in shapes
    ]


def output_and_gradients(module: torch.nn.Module, tensors: list[torch.Tensor], mask: torch.Tensor | None = None):
    out = module(*tensors, mask)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_stock(groups: int, scale: float | None, masked: bool) -> None:
    mask = None
    if masked:  # causal, and in the second sequence nobody sees token 3 (True: must not look)
        mask = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1).expand(BATCH, 1, -1, -1).clone()
        mask[1, :, 4:, 3] = True
    ours, stock = (
        output_and_gradients(attention(kind, scale=scale, num_query_groups=groups), inputs(groups), mask)
        for kind in (FlashCoreAttention, DotProductAttention)
    )
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


def test_queries_see_nothing_ahead() -> None:
    query, key, value = inputs()
    before = attention()(query, key, value, None)
    with torch.no_grad():
        key[7:] += 1
        value[7:] += 1
    after = attention()(query, key, value, None)
    assert torch.equal(before[:7], after[:7])
    assert not torch.equal(before[7:], after[7:])


def test_value_heads_of_another_size() -> None:
    query, key, value = inputs(value_channels=6)
    out = attention()(query, key, value, None)
    first = value[0].reshape(BATCH, -1)  # the first token sees only itself
    torch.testing.assert_close(out[0], first)
    assert out.shape == (SEQUENCE, BATCH, HEADS * 6)


def test_a_single_query_sees_every_key() -> None:
    query, key, value = inputs()
    out = attention()(query[:1], key, value, None)
    scores = torch.einsum("bnd,sbnd->bns", query[0], key) / math.sqrt(CHANNELS)
    expected = torch.einsum("bns,sbnd->bnd", scores.softmax(-1), value).reshape(1, BATCH, -1)
    torch.testing.assert_close(out, expected)


def test_dropout_comes_from_the_tracker() -> None:
    tracker, tensors = get_cuda_rng_tracker(), inputs()
    module = attention(dropout=0.3)
    states, default = tracker.get_states(), torch.get_rng_state()
    first = module(*tensors, None)
    assert torch.equal(torch.get_rng_state(), default), "the default generator was used"
    second = module(*tensors, None)
    tracker.set_states(states)
    again = module(*tensors, None)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(module.eval()(*tensors, None), attention()(*tensors, None))


def test_dropout_with_sequence_parallel_uses_the_state_of_the_block() -> None:
    module, default = attention(dropout=0.3), torch.get_rng_state()
    module.config.sequence_parallel = True
    module(*inputs(), None)
    assert not torch.equal(torch.get_rng_state(), default)


def test_recompute_replays_dropout() -> None:
    tracker, module = get_cuda_rng_tracker(), attention(dropout=0.3)
    states = tracker.get_states()
    plain = inputs()
    module(*plain, None).square().sum().backward()
    tracker.set_states(states)
    replayed = inputs()
    checkpoint(lambda *tensors: module(*tensors, None), False, *replayed).square().sum().backward()
    for a, b in zip(plain, replayed, strict=True):
        assert torch.equal(a.grad, b.grad)


def packed(*bounds: int) -> PackedSeqParams:
    lengths = torch.tensor(bounds, dtype=torch.int32)
    return PackedSeqParams(qkv_format="thd", cu_seqlens_q=lengths, cu_seqlens_kv=lengths)


def test_packed_documents_do_not_see_each_other() -> None:
    module = attention(num_query_groups=2)
    query, key, value = (x[:, 0] for x in inputs(groups=2))  # [tokens, heads, channels]
    out = module(query, key, value, None, packed_seq_params=packed(0, 5, SEQUENCE))
    for start, end in ((0, 5), (5, SEQUENCE)):
        alone = module(*(x[start:end].unsqueeze(1) for x in (query, key, value)), None)
        assert torch.equal(out[start:end], alone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention_bias": torch.zeros(1)}, "attention bias"),
        ({"packed_seq_params": packed(0, 5)}, "to 5 in a sequence of 12"),
        (
            {"packed_seq_params": SimpleNamespace(cu_seqlens_q=torch.tensor([0, 12]), cu_seqlens_q_padded=1)},
            "packed documents with",
        ),
    ],
)
def test_refuses_inputs(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        attention()(*inputs(), None, **options)


@pytest.mark.parametrize("options", [{"window_size": (4, 0)}, {"softmax_type": "off-by-one"}])
def test_refuses_options_that_only_stock_has(options: dict) -> None:
    with pytest.raises(ConfigError, match="--attention-backend unfused"):
        attention(**options)
    attention(DotProductAttention, **options)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_zigzag_places_undo_the_cut(ranks: int) -> None:
    whole = list(range(2 * ranks))
    laid = [chunk for rank in range(ranks) for chunk in (whole[rank], whole[-1 - rank])]
    assert [laid[place] for place in zigzag_places(ranks)] == whole
