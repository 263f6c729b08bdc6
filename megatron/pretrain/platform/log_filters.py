"""Quiet megatron-core's messages that say nothing new: what is absent is in the start-up log (see `versions`)."""

import logging
import re
import warnings

STOCK_WARNINGS = (
    # Once per module that looks for an optional package.
    r"Apex is not installed\. Falling back to Torch Norm",
    r"Transformer Engine and Apex are not installed\. Falling back to",
    # Values that megatron-core derives for us, as documented for the flags.
    r"moe_ffn_hidden_size is not set, using ffn_hidden_size instead",
    r"full scope is deprecated\. Use empty cuda_graph_scope",
    r"`sequence_parallel` is set to `True`, but tensor model parallel size is 1",  # experts of their own on each rank
    # Looking whether a parameter has a gradient, which a shard of the distributed optimizer has not.
    r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    # Advice that does not depend on what the user chose.
    r"If you are using transformer_engine as the transformer implementation, the core_attn is from",
    r"The following imports from `dynamic_context\.py` will be removed",
)
"""Regular expressions for the start of a warning raised in a megatron.core module; the rest is still shown."""

TORCH_WARNINGS = (r"`torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",)
"""Raised by torch 2.13 for the names under which megatron-core 0.16.1 calls the two collectives."""

CPU_WARNINGS = (r"When using (sequence parallelism|async grad allreduce) it is recommended to set the environment",)
"""Quiet on the CPU only: CUDA_DEVICE_MAX_CONNECTIONS means nothing there."""


# The rerun state machine makes itself at its first use, switched off, and says so as a warning
# (megatron/core/rerun_state_machine.py 0.16.1).
_RERUN = ("Implicit initialization of Rerun State Machine", "RerunStateMachine initialized in mode RerunMode.DISABLED")


class DropMessages(logging.Filter):
    """A logging filter that drops records whose message contains one of some texts."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in str(record.msg) for text in self.texts)


def quiet_stock_messages(on_cpu: bool) -> None:
    """Install the warning filters and the log filters; on the CPU also against the RNG tracker's line per dropout.

    Args:
        on_cpu: one generator then serves both as "CPU" and as "CUDA" generator, which
            megatron/core/tensor_parallel/random.py 0.16.1 reports at every fork.
    """
    for message in STOCK_WARNINGS + (CPU_WARNINGS if on_cpu else ()):
        warnings.filterwarnings("ignore", message=message, module=re.escape("megatron.core"))
    for message in TORCH_WARNINGS:
        warnings.filterwarnings("ignore", message=message, module=re.escape("torch.distributed"))
    _drop("megatron.core.rerun_state_machine", *_RERUN)
    if on_cpu:
        _drop("megatron.core.tensor_parallel.random", "CPU RNG state changed within GPU RNG context")


def _drop(logger_name: str, *texts: str) -> None:
    logger = logging.getLogger(logger_name)
    if not any(isinstance(known, DropMessages) for known in logger.filters):
        logger.addFilter(DropMessages(*texts))
