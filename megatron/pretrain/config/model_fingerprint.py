"""One text for the model and its layout within a stage: a profile and a plan hold for runs with the same one."""

import hashlib
import json

from megatron.pretrain.config.pretrain_config import PretrainConfig

_DIGITS = 16
_MODEL = (
    "seq_length", "attention_dropout", "hidden_dropout", "transformer_impl", "attention_backend",
    "make_vocab_size_divisible_by", "bias_dropout_fusion", "masked_softmax_fusion", "gradient_accumulation_fusion",
    "rope_fusion", "cross_entropy_loss_fusion",
)  # fmt: skip
_DATA = ("tokenizer_type", "vocab_size")
_PARALLEL = (
    "tensor_model_parallel_size", "context_parallel_size", "expert_model_parallel_size", "expert_tensor_parallel_size",
    "sequence_parallel",
)  # fmt: skip
_MOE = ("moe_token_dispatcher_type", "moe_grouped_gemm", "moe_expert_capacity_factor", "moe_shared_expert_overlap")


def model_fingerprint(config: PretrainConfig) -> str:
    """A hash of what decides how long units take and what they keep, the number of layers included.

    Pipeline and data-parallel sizes, the split into stages and the number of microbatches are not part of it: one
    profile serves all of them. Back end and hardware are not either; a profile names them.

    Args:
        config: resolved.
    """
    facts = {
        **config.identity(),
        "bias_activation_fusion": config.bias_activation_fusion,
        "params_dtype": config.params_dtype_name,
        "micro_batch_size": config.training.micro_batch_size,
        **{name: getattr(config.model, name) for name in _MODEL},
        **{name: getattr(config.data, name) for name in _DATA},
        **{name: getattr(config.parallel, name) for name in _PARALLEL},
    }
    if config.moe.num_experts is not None:
        facts |= {name: getattr(config.moe, name) for name in _MOE}
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def model_summary(config: PretrainConfig) -> str:
    """The model in a line, for people."""
    model, parallel = config.model, config.parallel
    heads = f"{model.num_attention_heads} heads"
    if config.num_query_groups != model.num_attention_heads:
        heads += f" in {config.num_query_groups} groups"
    experts = f", {config.moe.num_experts} experts" if config.moe.num_experts else ""
    return (
        f"{model.num_layers} layers, h {model.hidden_size}, {heads}, ffn {config.ffn_hidden_size}{experts}, sequence "
        f"{model.seq_length}, micro-batch {config.training.micro_batch_size}, {config.params_dtype_name}, "
        f"tensor parallel {parallel.tensor_model_parallel_size}"
    )
