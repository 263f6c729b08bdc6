"""What decides which layers a model is made of."""

from megatron.pretrain.config import PretrainConfig


def uses_transformer_engine(config: PretrainConfig) -> bool:
    """Whether layers are Transformer Engine's rather than megatron-core's own."""
    return config.model.transformer_impl == "transformer_engine"


def runs_on_cpu(config: PretrainConfig) -> bool:
    """Whether the run's device is the CPU."""
    return config.distributed.distributed_backend == "gloo"
