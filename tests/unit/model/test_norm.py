"""Norms for layers without Transformer Engine."""

import pytest
import torch
from megatron.core.fusions.fused_layer_norm import FusedLayerNorm
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.pretrain.model import norm as norm_module
from megatron.pretrain.model.norm import SequenceParallelLayerNorm, SequenceParallelRMSNorm, norm_class

CASES = [("LayerNorm", SequenceParallelLayerNorm), ("RMSNorm", SequenceParallelRMSNorm)]


def config(**options: object) -> TransformerConfig:
    return TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=2, **options)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_computes_what_its_formula_says(name: str, kind: type) -> None:
    norm = norm_class(name)(config=config(), hidden_size=16, eps=1e-3)
    assert type(norm) is kind
    x = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))
    centred = x - x.mean(-1, keepdim=True) if name == "LayerNorm" else x
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("split", [False, True])
def test_marks_parameters_and_takes_their_dtype(name: str, kind: type, split: bool) -> None:
    tensor_parallel = 2 if split else 1
    options = config(
        sequence_parallel=split, tensor_model_parallel_size=tensor_parallel, params_dtype=torch.bfloat16, bf16=True
    )
    norm = kind(config=options, hidden_size=16)
    parameters = dict(norm.named_parameters())
    assert set(parameters) == ({"weight", "bias"} if name == "LayerNorm" else {"weight"})
    for parameter in parameters.values():
        assert parameter.sequence_parallel is split
        assert parameter.dtype == torch.bfloat16


def test_apex_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_module, "has_package", lambda name: name == "apex")
    assert norm_class("LayerNorm") is FusedLayerNorm
    assert norm_class("RMSNorm") is SequenceParallelRMSNorm
