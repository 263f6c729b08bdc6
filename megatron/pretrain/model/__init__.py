"""The model: options to TransformerConfig, layers, GPT chunks, initial weights. Import after `install_platform`."""

from megatron.pretrain.model.attention import FlashCoreAttention
from megatron.pretrain.model.build import build_model
from megatron.pretrain.model.initialization import initialize_by_name
from megatron.pretrain.model.layer_spec import build_block_spec
from megatron.pretrain.model.norm import SequenceParallelLayerNorm, SequenceParallelRMSNorm
from megatron.pretrain.model.transformer_config import build_transformer_config

__all__ = [
    "FlashCoreAttention",
    "SequenceParallelLayerNorm",
    "SequenceParallelRMSNorm",
    "build_block_spec",
    "build_model",
    "build_transformer_config",
    "initialize_by_name",
]
