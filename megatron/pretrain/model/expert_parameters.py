"""Correct the marks by which megatron-core decides over which ranks an expert's gradients are summed and measured.

Three marks of megatron/core/tensor_parallel/layers.py 0.16.1 are wrong when experts are spread differently from the
rest of the model (expert-tensor-parallel size other than tensor-parallel size). Training then goes wrong, silently:

1. `allreduce` stays True when there is no expert parallelism, so that gradients of experts are summed over the
   data-parallel ranks of the dense layers only. Tensor-parallel ranks that hold the same expert drift apart.
2. `sequence_parallel` is set on an expert's output bias as on a dense one. Its gradient, complete after the sum over
   its own data-parallel ranks, is then summed over the tensor-parallel ranks, which may hold other experts.
3. `tensor_model_parallel` is not set on an expert's output bias, so that only the first tensor-parallel rank counts it
   in the gradient norm, and ranks clip by different norms.
"""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

EXPERTS = ".experts."
"""Part of the name of every routed expert's parameters (not of the shared expert's: ".shared_experts.")."""


def correct_expert_marks(chunk: torch.nn.Module, transformer_config: TransformerConfig) -> None:
    """Set the three marks on the parameters of routed experts. Call before DDP, which sorts parameters by `allreduce`.

    Args:
        chunk: a GPTModel whose parameters have their tensor-parallel attributes.
        transformer_config: its parallel sizes.
    """
    expert_tensor_parallel = transformer_config.expert_tensor_parallel_size
    own_ranks = (
        transformer_config.expert_model_parallel_size > 1
        or expert_tensor_parallel != transformer_config.tensor_model_parallel_size
    )
    for name, parameter in chunk.named_parameters():
        if EXPERTS in name:
            parameter.allreduce = not own_ranks  # type: ignore[attr-defined]
            parameter.sequence_parallel = False  # type: ignore[attr-defined]
            if expert_tensor_parallel == 1:
                parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
