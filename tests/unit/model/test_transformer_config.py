"""From options to TransformerConfig."""

import pytest
import torch
from megatron.core.activations import squared_relu
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.pretrain.model import build_transformer_config
from megatron.pretrain.model.build import build_ddp_config
from overlap_recompute.plan.errors import ConfigError
from tests.unit.model.support import EXPERTS, LLAMA, config_of

PP2 = "--num-layers 4 --pipeline-model-parallel-size 2"
VPP = f"{PP2} --num-layers-per-virtual-pipeline-stage 1"


def build(*flags: str) -> TransformerConfig:
    return build_transformer_config(config_of(*flags))


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        ("", {"use_cpu_initialization": True, "transformer_impl": "local", "add_bias_linear": True}),
        ("", {"masked_softmax_fusion": False, "gradient_accumulation_fusion": False, "apply_rope_fusion": False}),
        ("", {"bias_activation_fusion": True, "activation_func": torch.nn.functional.gelu}),
        ("--squared-relu", {"bias_activation_fusion": False, "activation_func": squared_relu}),
        (LLAMA, {"gated_linear_unit": True, "num_query_groups": 2, "qk_layernorm": True, "add_bias_linear": False}),
        (LLAMA, {"bias_activation_fusion": True, "normalization": "RMSNorm", "ffn_hidden_size": 64}),
        ("--bf16", {"params_dtype": torch.bfloat16, "pipeline_dtype": torch.bfloat16, "bf16": True}),
        ("--fp16", {"params_dtype": torch.float16, "pipeline_dtype": torch.float16, "fp16": True}),
        (PP2, {"batch_p2p_comm": True, "overlap_p2p_comm": False, "deallocate_pipeline_outputs": True}),
        (
            VPP,
            {"virtual_pipeline_model_parallel_size": 2, "overlap_p2p_comm": True, "batch_p2p_comm": False,
             "deallocate_pipeline_outputs": False},
        ),
        # Two interleaved stages must never batch their transfers: stock would cross the messages without an error.
        (
            f"{VPP} --no-overlap-p2p-communication",
            {"overlap_p2p_comm": False, "batch_p2p_comm": False, "deallocate_pipeline_outputs": True},
        ),
        (f"{PP2} --decoder-first-pipeline-num-layers 1", {"num_layers_in_first_pipeline_stage": 1}),
        (EXPERTS, {"num_moe_experts": 4, "moe_layer_freq": 1, "moe_router_topk": 2, "moe_ffn_hidden_size": 128}),
        (f"{EXPERTS} --moe-layer-freq [0,1]", {"moe_layer_freq": [0, 1], "bias_activation_fusion": False}),
        (f"{EXPERTS} --swiglu", {"bias_activation_fusion": False}),
        (f"{EXPERTS} --swiglu --disable-bias-linear", {"bias_activation_fusion": True}),
        (
            f"{EXPERTS} --tensor-model-parallel-size 2 --sequence-parallel",
            {"expert_tensor_parallel_size": 1, "sequence_parallel": True},
        ),
        (
            "--recompute-granularity selective --recompute-modules mlp layernorm",
            {"recompute_granularity": "selective", "recompute_modules": ["mlp", "layernorm"]},
        ),
        (
            "--recompute-granularity full --recompute-method block --recompute-num-layers 1",
            {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1},
        ),
    ],
)  # fmt: skip
def test_values(flags: str, values: dict) -> None:
    built = build(flags)
    assert {name: getattr(built, name) for name in values} == values


def test_layout_decides_the_virtual_size() -> None:
    layout = build(f"{PP2} --pipeline-model-parallel-layout Et|t|t|tL").pipeline_model_parallel_layout
    assert layout.virtual_pipeline_model_parallel_size == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--num-attention-heads 4 --tensor-model-parallel-size 3", "num_attention_heads"),
    ],
)
def test_refusals(flags: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(flags)


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        ("", {"grad_reduce_in_fp32": False, "overlap_grad_reduce": False, "bucket_size": None}),
        ("--bf16", {"grad_reduce_in_fp32": True}),
        ("--bf16 --grad-reduce-in-bf16", {"grad_reduce_in_fp32": False}),
        ("--ddp-bucket-size 1000 --ddp-average-in-collective", {"bucket_size": 1000, "average_in_collective": True}),
        (
            "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather",
            {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
        ),
        ("--fp16", {"check_for_nan_in_grad": False}),
    ],
)
def test_ddp_config(flags: str, values: dict) -> None:
    built = build_ddp_config(config_of(flags))
    assert {name: getattr(built, name) for name in values} == values
