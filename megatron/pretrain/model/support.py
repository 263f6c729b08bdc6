"""Combinations of options that the chosen platform or megatron-core cannot run, refused before anything is built.

Contradictions between options as such are refused by `megatron.pretrain.config.validate`, which needs no torch. What is
left depends on what is installed on this machine.
"""

from collections.abc import Callable

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.platform import has_package
from overlap_recompute.plan.errors import ConfigError


def uses_transformer_engine(config: PretrainConfig) -> bool:
    """Whether layers are Transformer Engine's rather than megatron-core's own."""
    return config.model.transformer_impl == "transformer_engine"


def runs_on_cpu(config: PretrainConfig) -> bool:
    """Whether the run's device is the CPU."""
    return config.distributed.distributed_backend == "gloo"


def check_support(config: PretrainConfig) -> None:
    """Refuse what cannot run here. Call after `install_platform`.

    Raises:
        ConfigError: the first combination that cannot run, with a way out.
    """
    for check in _CHECKS:
        error = check(config)
        if error is not None:
            raise error


def _transformer_engine_is_there(config: PretrainConfig) -> ConfigError | None:
    if not uses_transformer_engine(config) or has_package("transformer_engine"):
        return None
    where = "with --distributed-backend gloo (its kernels need CUDA)" if runs_on_cpu(config) else "and none installed"
    return ConfigError(
        found=f"--transformer-impl transformer_engine {where}",
        expected="Transformer Engine and a GPU, or --transformer-impl local",
        next_step="use --transformer-impl local, or install transformer-engine on a GPU machine",
    )


def _attention_backend_is_there(config: PretrainConfig) -> ConfigError | None:
    if config.model.attention_backend != "fused" or uses_transformer_engine(config):
        return None
    return ConfigError(
        found="--attention-backend fused without Transformer Engine",
        expected="auto, flash, unfused or local with --transformer-impl local",
        next_step="use --attention-backend flash",
    )


def _context_parallel_attention(config: PretrainConfig) -> ConfigError | None:
    unfused = config.model.attention_backend in ("unfused", "local") and not uses_transformer_engine(config)
    if config.parallel.context_parallel_size == 1 or not unfused:
        return None
    return ConfigError(
        found=f"--context-parallel-size {config.parallel.context_parallel_size} with --attention-backend "
        f"{config.model.attention_backend}",
        expected="an attention that can gather keys and values over ranks",
        next_step="use --attention-backend flash, or --context-parallel-size 1",
    )


def _fused_cross_entropy_is_there(config: PretrainConfig) -> ConfigError | None:
    model = config.model
    needs_it = model.cross_entropy_loss_fusion and model.cross_entropy_fusion_impl == "te"
    if not needs_it or has_package("transformer_engine"):
        return None
    return ConfigError(
        found="--cross-entropy-fusion-impl te without Transformer Engine",
        expected="native, or Transformer Engine installed on a GPU machine",
        next_step="use --cross-entropy-fusion-impl native",
    )


def _grouped_gemm_is_there(config: PretrainConfig) -> ConfigError | None:
    if not config.moe.moe_grouped_gemm or uses_transformer_engine(config):
        return None
    return ConfigError(
        found="--moe-grouped-gemm without Transformer Engine",
        expected="Transformer Engine's grouped GEMM, which needs CUDA",
        next_step="leave out --moe-grouped-gemm",
    )


def _expert_tensors_on_gloo(config: PretrainConfig) -> ConfigError | None:
    size = config.parallel.expert_tensor_parallel_size
    if config.moe.num_experts is None or not runs_on_cpu(config) or size == 1:
        return None
    return ConfigError(
        found=f"--expert-tensor-parallel-size {size} with --distributed-backend gloo",
        expected="1, because the ranks of one expert gather unequal numbers of tokens and gloo cannot",
        next_step="use --expert-tensor-parallel-size 1",
    )


_CHECKS: tuple[Callable[[PretrainConfig], ConfigError | None], ...] = (
    _transformer_engine_is_there,
    _attention_backend_is_there,
    _context_parallel_attention,
    _fused_cross_entropy_is_there,
    _grouped_gemm_is_there,
    _expert_tensors_on_gloo,
)
