"""Which module fills which place of a transformer layer."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from megatron.core.fusions.fused_layer_norm import FusedLayerNorm
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.model.attention import FlashCoreAttention
from megatron.pretrain.model.norm import norm_class
from megatron.pretrain.model.support import uses_transformer_engine

CORE_ATTENTION = {
    "auto": FlashCoreAttention,
    "flash": FlashCoreAttention,
    "unfused": DotProductAttention,
    "local": DotProductAttention,
}
"""--attention-backend to the core attention of layers without Transformer Engine."""


def build_block_spec(
    config: PretrainConfig, transformer_config: TransformerConfig, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this rank's model chunk, dense or with experts as --moe-layer-freq says, and the final norm.

    With Transformer Engine the stock specification is used as it is. Without it the stock local one, with norms that
    know sequence parallelism in every place (also the final norm and the norms of queries and keys) and with the core
    attention that --attention-backend names.

    Args:
        config: the run's options.
        transformer_config: what `build_transformer_config` made of them.
        vp_stage: the virtual pipeline stage; None without interleaving.
    """
    transformer_engine = uses_transformer_engine(config)
    block = get_gpt_decoder_block_spec(
        transformer_config,
        use_transformer_engine=transformer_engine,
        normalization=transformer_config.normalization,
        vp_stage=vp_stage,
    )
    if transformer_engine:
        return block
    norm = norm_class(transformer_config.normalization)
    replacements = {
        WrappedTorchNorm: norm,
        FusedLayerNorm: norm,
        DotProductAttention: CORE_ATTENTION[config.model.attention_backend],
    }
    return replace_modules(block, replacements)


def replace_modules(spec: Any, replacements: dict[type, type]) -> Any:
    """A copy of a specification in which every module class that is a key is exchanged for its value.

    Args:
        spec: a ModuleSpec, a dataclass of submodules, a list or dict of those, a module class, or anything else.
        replacements: stock class to its substitute.
    """
    if isinstance(spec, type):
        return replacements.get(spec, spec)
    if isinstance(spec, list):
        return [replace_modules(item, replacements) for item in spec]
    if is_dataclass(spec) and not isinstance(spec, type):
        changed = {field.name: replace_modules(getattr(spec, field.name), replacements) for field in fields(spec)}
        return replace(spec, **changed)
    return spec
