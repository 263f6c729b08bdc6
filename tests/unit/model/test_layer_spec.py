"""What fills the places of a layer."""

import pytest
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm

from megatron.pretrain.model import build_block_spec, build_transformer_config
from megatron.pretrain.model.attention import FlashCoreAttention
from megatron.pretrain.model.layer_spec import replace_modules
from megatron.pretrain.model.norm import SequenceParallelLayerNorm, SequenceParallelRMSNorm
from megatron.pretrain.platform import has_package
from tests.unit.model.support import EXPERTS, LLAMA, config_of

pytestmark = pytest.mark.usefixtures("rank")


def block(*flags: str):
    config = config_of(*flags)
    return build_block_spec(config, build_transformer_config(config))


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("auto", FlashCoreAttention),
        ("flash", FlashCoreAttention),
        ("unfused", DotProductAttention),
        ("local", DotProductAttention),
    ],
)
def test_attention_backend(backend: str, kind: type) -> None:
    for layer in block(f"--attention-backend {backend}").layer_specs:
        assert layer.submodules.self_attention.submodules.core_attention is kind


@pytest.mark.parametrize(("flags", "norm"), [("", SequenceParallelLayerNorm), (LLAMA, SequenceParallelRMSNorm)])
def test_every_norm_knows_sequence_parallelism(flags: str, norm: type) -> None:
    spec = block(flags)
    assert spec.layer_norm is norm  # the final norm
    for layer in spec.layer_specs:
        places, attention = layer.submodules, layer.submodules.self_attention.submodules
        assert places.input_layernorm is norm
        assert places.pre_mlp_layernorm is norm
        assert attention.q_layernorm is attention.k_layernorm is (norm if flags else IdentityOp)


def test_experts_are_in_the_layers_that_the_pattern_names() -> None:
    layers = block(EXPERTS, "--num-layers 4 --moe-layer-freq [0,1]*2").layer_specs
    assert [layer.submodules.mlp.module for layer in layers] == [MLP, MoELayer, MLP, MoELayer]


def test_replacing_leaves_the_original() -> None:
    original = ModuleSpec(module=MLP, submodules=ModuleSpec(module=WrappedTorchNorm), params={"key": 1})
    changed = replace_modules(original, {WrappedTorchNorm: SequenceParallelLayerNorm})
    assert changed.submodules.module is SequenceParallelLayerNorm
    assert original.submodules.module is WrappedTorchNorm
    assert (changed.module, changed.params) == (MLP, {"key": 1})


@pytest.mark.skipif(
    not has_package("transformer_engine"), reason="Transformer Engine is not installed, or hidden on CPU"
)
def test_transformer_engine_layers_are_stock() -> None:
    spec = block("--transformer-impl transformer_engine")
    assert "transformer_engine" in spec.layer_norm.__module__
