"""Adjustments of megatron-core, one file per upstream file and named after it.

`STOCK_FIXES` mend faults of megatron-core that show on any machine without Transformer Engine, and some also with it.
`CPU_SEAMS` are needed only where the CPU stands in for CUDA.
"""

from megatron.pretrain.platform.seams import (
    distrib_optimizer,
    jit,
    moe_utils,
    multi_latent_attention,
    tensor_parallel_mappings,
    tensor_parallel_random,
)

STOCK_FIXES = (
    tensor_parallel_random.OUTPUT_DISCARDING_CHECKPOINT_WITHOUT_FP8,
    tensor_parallel_random.CHECKPOINT_OF_A_RETURNED_PARAMETER,
    moe_utils.ROUTER_WITHOUT_TRANSFORMER_ENGINE,
    multi_latent_attention.LATENT_ATTENTION_WITHOUT_TRANSFORMER_ENGINE,
    distrib_optimizer.ADAM_STATE_OF_TORCH,
    tensor_parallel_mappings.REDUCTIONS_OVER_ONE_RANK,
)

CPU_SEAMS = (
    jit.NO_JIT_FUSER,
    tensor_parallel_random.CPU_GENERATOR,
    moe_utils.COUNTS_AS_NUMPY,
)
