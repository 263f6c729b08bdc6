"""What the layers of this trainer cannot do, refused before anything is built."""

from megatron.pretrain.config import PretrainConfig
from overlap_recompute.plan.errors import ConfigError


def uses_transformer_engine(config: PretrainConfig) -> bool:
    """Whether layers are Transformer Engine's rather than megatron-core's own."""
    return config.model.transformer_impl == "transformer_engine"


def runs_on_cpu(config: PretrainConfig) -> bool:
    """Whether the run's device is the CPU."""
    return config.distributed.distributed_backend == "gloo"


def check_support(config: PretrainConfig) -> None:
    """Refuse what the chosen layers cannot do; `megatron.pretrain.config.validate` has refused what contradicts itself.

    Raises:
        ConfigError: the first such combination, with a way out.
    """
    _context_parallel_attention(config)
    _shared_expert_without_bias(config)


def _context_parallel_attention(config: PretrainConfig) -> None:
    unfused = config.model.attention_backend in ("unfused", "local") and not uses_transformer_engine(config)
    if config.parallel.context_parallel_size > 1 and unfused:
        raise ConfigError(
            found=f"--context-parallel-size {config.parallel.context_parallel_size} with --attention-backend "
            f"{config.model.attention_backend}",
            expected="an attention that can gather keys and values over ranks",
            next_step="use --attention-backend flash, or --context-parallel-size 1",
        )


def _shared_expert_without_bias(config: PretrainConfig) -> None:
    if config.moe.moe_shared_expert_intermediate_size is not None and not config.model.disable_bias_linear:
        raise ConfigError(
            found="--moe-shared-expert-intermediate-size with biases in linear layers",
            expected="a shared expert without bias; megatron-core has no other",
            next_step="add --disable-bias-linear",
        )
