"""Build real Megatron-Core models in a process of their own and say, as JSON, what they hold and what they compute."""

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from megatron.pretrain.platform import install_platform

install_platform("gloo")

from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402

from megatron.pretrain.logs.model_shape import parameter_count, shape_of  # noqa: E402
from megatron.pretrain.logs.throughput import flops_per_iteration  # noqa: E402

SEQUENCE_LENGTH, VOCABULARY, BATCH = 24, 96, 2
COMMON = TransformerConfig(
    num_layers=2, hidden_size=32, num_attention_heads=4, use_cpu_initialization=True, attention_dropout=0.0,
    hidden_dropout=0.0, masked_softmax_fusion=False, gradient_accumulation_fusion=False,
)  # fmt: skip
LLAMA: dict[str, Any] = {
    "num_query_groups": 2, "kv_channels": 16, "gated_linear_unit": True, "ffn_hidden_size": 80,
    "activation_func": torch.nn.functional.silu, "add_bias_linear": False, "normalization": "RMSNorm",
}  # fmt: skip
MODELS = {
    "gpt2": (replace(COMMON), "learned_absolute", True),
    "qkv_bias": (replace(COMMON, add_bias_linear=False, add_qkv_bias=True), "rope", False),
    "llama": (replace(COMMON, **LLAMA), "rope", False),
    "qk_norm": (replace(COMMON, **LLAMA, qk_layernorm=True), "rope", True),
    "moe": (
        replace(
            COMMON, **LLAMA, num_layers=3, num_moe_experts=4, moe_router_topk=2, moe_ffn_hidden_size=48,
            moe_layer_freq=[0, 1, 1], moe_shared_expert_intermediate_size=40, moe_aux_loss_coeff=0.0,
            moe_router_load_balancing_type="none", moe_token_dispatcher_type="alltoall",
        ),
        "rope",
        False,
    ),
}  # fmt: skip


def measure(config: TransformerConfig, positions: str, tied: bool) -> dict[str, float]:
    """Counted and predicted parameters and FLOPs of one model."""
    model = GPTModel(
        config, get_gpt_decoder_block_spec(config, use_transformer_engine=False), VOCABULARY, SEQUENCE_LENGTH,
        position_embedding_type=positions, share_embeddings_and_output_weights=tied,
    )  # fmt: skip
    shape = shape_of(
        config, padded_vocab_size=VOCABULARY, sequence_length=SEQUENCE_LENGTH, tied_embeddings=tied,
        max_position_embeddings=SEQUENCE_LENGTH if positions == "learned_absolute" else 0,
    )  # fmt: skip
    tokens = torch.randint(VOCABULARY, (BATCH, SEQUENCE_LENGTH))
    position_ids = torch.arange(SEQUENCE_LENGTH).expand(BATCH, -1)
    with FlopCounterMode(display=False) as counter:
        model(tokens, position_ids, None, labels=tokens).mean().backward()
    router = 3 * 2 * BATCH * SEQUENCE_LENGTH * shape.moe_layers * shape.hidden_size * shape.num_experts
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "predicted_parameters": parameter_count(shape),
        "flops": counter.get_total_flops() - router,
        "predicted_flops": flops_per_iteration(shape, BATCH, causal=False),
    }


if __name__ == "__main__":
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    json.dump({name: measure(*model) for name, model in MODELS.items()}, sys.stdout)
